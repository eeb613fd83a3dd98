-- The state of every wanted aspect of every product in a range: done, empty, failed, or why stale.
-- A sub-select of others. Ledger and v2 say what is committed; the digest says what today's text is.
SELECT
    products.id AS product_id,
    wanted.aspect,
    wanted.fingerprint,
    aspect_text.text,
    today.text_digest,
    CASE
        WHEN ledger.product_id IS NULL THEN 'new'
        WHEN ledger.text_digest <> today.text_digest THEN 'text changed'
        WHEN ledger.fingerprint <> wanted.fingerprint THEN 'model changed'
        WHEN ledger.outcome = 'retry' THEN 'retry'
        WHEN ledger.outcome = 'failed' AND failed.product_id IS NULL THEN 'vector missing'
        WHEN ledger.outcome IN ('empty', 'failed') AND v2."productId" IS NOT NULL THEN ledger.outcome
        WHEN CASE wanted.aspect
            WHEN 'description' THEN v2.description_embedding
            WHEN 'usage' THEN v2.usage_embedding
            WHEN 'feature' THEN v2.feature_embedding
        END IS NULL THEN 'vector missing'
        ELSE 'done'
    END AS state
FROM products
CROSS JOIN unnest(%(aspects)s::text[], %(fingerprints)s::text[]) AS wanted (aspect, fingerprint)
LEFT JOIN (
    SELECT mapped.product_id, mapped.aspect, mapped.text
    FROM ({product_texts}) AS mapped
    WHERE (%(first)s::{id_type} IS NULL OR mapped.product_id >= %(first)s::{id_type})
        AND (%(end)s::{id_type} IS NULL OR mapped.product_id < %(end)s::{id_type})
) AS aspect_text ON aspect_text.product_id = products.id AND aspect_text.aspect = wanted.aspect
CROSS JOIN LATERAL (
    SELECT sha256(convert_to(coalesce(aspect_text.text, ''), 'UTF8')) AS text_digest
) AS today
LEFT JOIN ingestion.embedding_ledger AS ledger
    ON ledger.product_id = products.id AND ledger.aspect = wanted.aspect
LEFT JOIN ingestion.failed_products AS failed
    ON failed.product_id = products.id AND failed.aspect = wanted.aspect
LEFT JOIN product_embeddings_v2 AS v2 ON v2."productId" = products.id
WHERE (%(first)s::{id_type} IS NULL OR products.id >= %(first)s::{id_type})
    AND (%(end)s::{id_type} IS NULL OR products.id < %(end)s::{id_type})
