-- Failed products that are gone have nothing left to mend.
DELETE FROM ingestion.failed_products AS failed
WHERE NOT EXISTS (SELECT FROM products WHERE products.id = failed.product_id)
