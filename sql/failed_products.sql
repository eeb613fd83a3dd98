-- Every aspect that could not be embedded, with its product's name.
SELECT
    failed.product_id,
    products.name,
    failed.aspect,
    failed.reason,
    failed.attempts,
    failed.first_failed_at,
    failed.last_failed_at
FROM ingestion.failed_products AS failed
LEFT JOIN products ON products.id = failed.product_id
ORDER BY failed.reason, failed.product_id, failed.aspect
