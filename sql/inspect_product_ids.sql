-- Where no key says so: are the ids of the catalogue there, and each only once?
SELECT count(*) AS row_total, count(id) AS with_id, count(DISTINCT id) AS distinct_ids
FROM products
