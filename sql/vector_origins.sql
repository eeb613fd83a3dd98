-- Every vector of v2 with what is on record behind it: a fingerprint, or that it should not be there.
-- A sub-select of others.
SELECT
    v2."productId" AS product_id,
    vector.aspect,
    CASE WHEN ledger.outcome IN ('embedded', 'reused') THEN ledger.fingerprint END AS fingerprint,
    CASE WHEN ledger.outcome IN ('empty', 'failed') THEN ledger.outcome END AS meant_to_be_null
FROM product_embeddings_v2 AS v2
CROSS JOIN LATERAL (
    VALUES
        ('description', v2.description_embedding IS NOT NULL),
        ('usage', v2.usage_embedding IS NOT NULL),
        ('feature', v2.feature_embedding IS NOT NULL)
) AS vector (aspect, is_there)
LEFT JOIN ingestion.embedding_ledger AS ledger
    ON ledger.product_id = v2."productId" AND ledger.aspect = vector.aspect
WHERE vector.is_there
