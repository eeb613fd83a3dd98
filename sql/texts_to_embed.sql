-- How many distinct texts of a range no vector in v2 stands for yet, by fingerprint.
SELECT fingerprint, count(*) AS texts
FROM (
    SELECT DISTINCT fingerprint, text_digest
    FROM ({aspect_states}) AS aspect_state
    WHERE state NOT IN ('done', 'empty', 'failed') AND btrim(text, E' \t\r\n') <> ''
) AS stale
WHERE NOT EXISTS (
    SELECT FROM ingestion.embedding_ledger AS donor
    JOIN product_embeddings_v2 AS v2 ON v2."productId" = donor.product_id
    WHERE donor.text_digest = stale.text_digest
        AND donor.fingerprint = stale.fingerprint
        AND donor.outcome IN ('embedded', 'reused')
        AND CASE donor.aspect
            WHEN 'description' THEN v2.description_embedding
            WHEN 'usage' THEN v2.usage_embedding
            WHEN 'feature' THEN v2.feature_embedding
        END IS NOT NULL
)
GROUP BY fingerprint
ORDER BY fingerprint
