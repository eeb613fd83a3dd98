-- Lets the next session build indexes; a session that ends does so by itself.
SELECT pg_advisory_unlock(hashtext('ingestion.indexes'))
