-- Products with an aspect that could not be embedded, and why: how many, and the first.
SELECT
    failed.product_id,
    products.name,
    string_agg(failed.aspect || ': ' || failed.reason, '; ' ORDER BY failed.aspect) AS detail,
    count(*) OVER () AS total
FROM ingestion.failed_products AS failed
LEFT JOIN products ON products.id = failed.product_id
GROUP BY failed.product_id, products.name
ORDER BY failed.product_id
LIMIT %(sample)s
