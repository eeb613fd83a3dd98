-- Make failed aspects stale again; they leave failed_products when they succeed.
UPDATE ingestion.embedding_ledger SET outcome = 'retry' WHERE outcome = 'failed'
