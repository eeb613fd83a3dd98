-- Rows of v2 with a vector of norm zero, which a cosine index never returns: how many, and the first.
SELECT
    v2."productId" AS product_id,
    products.name,
    concat_ws(
        ', ',
        CASE WHEN vector_norm(v2.description_embedding) = 0 THEN 'description is zero' END,
        CASE WHEN vector_norm(v2.usage_embedding) = 0 THEN 'usage is zero' END,
        CASE WHEN vector_norm(v2.feature_embedding) = 0 THEN 'feature is zero' END
    ) AS detail,
    count(*) OVER () AS total
FROM product_embeddings_v2 AS v2
LEFT JOIN products ON products.id = v2."productId"
WHERE vector_norm(v2.description_embedding) = 0
    OR vector_norm(v2.usage_embedding) = 0
    OR vector_norm(v2.feature_embedding) = 0
ORDER BY v2."productId"
LIMIT %(sample)s
