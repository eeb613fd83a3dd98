-- Says what the vectors of the same transaction stand for.
INSERT INTO ingestion.embedding_ledger AS ledger (
    product_id, aspect, text_digest, fingerprint, outcome, tokens, truncated, run_id, written_at
)
SELECT
    product_id, aspect, text_digest, fingerprint, outcome, tokens, truncated, %(run_id)s, now()
FROM pg_temp.incoming
ORDER BY product_id, aspect
ON CONFLICT (product_id, aspect) DO UPDATE SET
    text_digest = EXCLUDED.text_digest,
    fingerprint = EXCLUDED.fingerprint,
    outcome = EXCLUDED.outcome,
    tokens = EXCLUDED.tokens,
    truncated = EXCLUDED.truncated,
    run_id = EXCLUDED.run_id,
    written_at = EXCLUDED.written_at
