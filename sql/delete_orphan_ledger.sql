-- Ledger rows of products that are gone.
DELETE FROM ingestion.embedding_ledger AS ledger
WHERE NOT EXISTS (SELECT FROM products WHERE products.id = ledger.product_id)
