-- Products with an aspect that failed; one that is to be tried again has not failed yet.
SELECT count(DISTINCT failed.product_id)
FROM ingestion.failed_products AS failed
JOIN ingestion.embedding_ledger AS ledger
    ON ledger.product_id = failed.product_id AND ledger.aspect = failed.aspect
WHERE ledger.outcome = 'failed'
