-- The products nearest to a query by any of its aspects, and how near each is by every one of them.
-- Cosine similarity, 1 is the same direction. An aspect that the query leaves out is NULL.
WITH nearest AS (
    (
        SELECT v2."productId" AS product_id
        FROM product_embeddings_v2 AS v2
        WHERE %(description)s::vector IS NOT NULL
        ORDER BY v2.description_embedding <=> %(description)s::vector
        LIMIT %(candidates)s
    )
    UNION
    (
        SELECT v2."productId"
        FROM product_embeddings_v2 AS v2
        WHERE %(usage)s::vector IS NOT NULL
        ORDER BY v2.usage_embedding <=> %(usage)s::vector
        LIMIT %(candidates)s
    )
    UNION
    (
        SELECT v2."productId"
        FROM product_embeddings_v2 AS v2
        WHERE %(feature)s::vector IS NOT NULL
        ORDER BY v2.feature_embedding <=> %(feature)s::vector
        LIMIT %(candidates)s
    )
)
SELECT
    products.id,
    products.name,
    1 - (v2.description_embedding <=> %(description)s::vector) AS description,
    1 - (v2.usage_embedding <=> %(usage)s::vector) AS usage,
    1 - (v2.feature_embedding <=> %(feature)s::vector) AS feature
FROM nearest
JOIN product_embeddings_v2 AS v2 ON v2."productId" = nearest.product_id
JOIN products ON products.id = nearest.product_id
ORDER BY products.id
