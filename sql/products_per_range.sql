-- How many products each of the ranges cut at boundaries has.
SELECT width_bucket(products.id, %(boundaries)s::{id_type}[]) AS position, count(*) AS product_total
FROM products
GROUP BY position
ORDER BY position
