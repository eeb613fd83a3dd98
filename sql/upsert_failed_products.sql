-- The aspects of a batch that could not be embedded, with the reason and one attempt more.
INSERT INTO ingestion.failed_products AS known (product_id, aspect, reason)
SELECT product_id, aspect, reason
FROM pg_temp.incoming
WHERE outcome = 'failed'
ORDER BY product_id, aspect
ON CONFLICT (product_id, aspect) DO UPDATE SET
    reason = EXCLUDED.reason,
    attempts = known.attempts + 1,
    last_failed_at = now()
