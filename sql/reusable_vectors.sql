-- Vectors in v2 that already stand for some texts under some fingerprints, whatever the product.
SELECT wanted.text_digest, wanted.fingerprint, donor.embedding, donor.tokens, donor.truncated
FROM unnest(%(text_digests)s::bytea[], %(fingerprints)s::text[])
    AS wanted (text_digest, fingerprint)
CROSS JOIN LATERAL (
    SELECT vector_of.embedding, ledger.tokens, ledger.truncated
    FROM ingestion.embedding_ledger AS ledger
    JOIN product_embeddings_v2 AS v2 ON v2."productId" = ledger.product_id
    CROSS JOIN LATERAL (
        SELECT CASE ledger.aspect
            WHEN 'description' THEN v2.description_embedding
            WHEN 'usage' THEN v2.usage_embedding
            WHEN 'feature' THEN v2.feature_embedding
        END AS embedding
    ) AS vector_of
    WHERE ledger.text_digest = wanted.text_digest
        AND ledger.fingerprint = wanted.fingerprint
        AND ledger.outcome IN ('embedded', 'reused')
        AND vector_norm(vector_of.embedding) > 0
    LIMIT 1
) AS donor
