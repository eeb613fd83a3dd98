-- The rows of v2 that lack a vector, and which; a product without text for an aspect is one of them.
SELECT
    v2."productId" AS product_id,
    v2.description_embedding IS NULL AS description_is_null,
    v2.usage_embedding IS NULL AS usage_is_null,
    v2.feature_embedding IS NULL AS feature_is_null
FROM product_embeddings_v2 AS v2
WHERE v2.description_embedding IS NULL
    OR v2.usage_embedding IS NULL
    OR v2.feature_embedding IS NULL
ORDER BY v2."productId"
