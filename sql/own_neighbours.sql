-- For some products of a range, always the same, what a search by their own vector returns first.
-- Distances are cosine; NaN stands for a vector of norm zero.
SELECT
    own.product_id,
    products.name,
    own.vector <=> own.vector AS own_distance,
    nearest.product_id AS nearest_id,
    nearest.distance AS nearest_distance
FROM (
    SELECT v2."productId" AS product_id, v2.{column} AS vector
    FROM product_embeddings_v2 AS v2
    WHERE v2.{column} IS NOT NULL
        AND (%(first)s::{id_type} IS NULL OR v2."productId" >= %(first)s::{id_type})
        AND (%(end)s::{id_type} IS NULL OR v2."productId" < %(end)s::{id_type})
    ORDER BY md5(v2."productId"::text)
    LIMIT %(sample)s
) AS own
LEFT JOIN products ON products.id = own.product_id
LEFT JOIN LATERAL (
    SELECT v2."productId" AS product_id, v2.{column} <=> own.vector AS distance
    FROM product_embeddings_v2 AS v2
    ORDER BY v2.{column} <=> own.vector
    LIMIT 1
) AS nearest ON true
ORDER BY own.product_id
