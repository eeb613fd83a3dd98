-- Rows of v2 with a vector of another length than the settings say: how many, and the first.
SELECT
    v2."productId" AS product_id,
    products.name,
    concat_ws(
        ', ',
        'description ' || vector_dims(v2.description_embedding),
        'usage ' || vector_dims(v2.usage_embedding),
        'feature ' || vector_dims(v2.feature_embedding)
    ) AS detail,
    count(*) OVER () AS total
FROM product_embeddings_v2 AS v2
LEFT JOIN products ON products.id = v2."productId"
WHERE vector_dims(v2.description_embedding) <> %(description)s
    OR vector_dims(v2.usage_embedding) <> %(usage)s
    OR vector_dims(v2.feature_embedding) <> %(feature)s
ORDER BY v2."productId"
LIMIT %(sample)s
