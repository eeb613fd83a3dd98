-- Rows of v2 whose product is gone: how many, and the first of them.
SELECT v2."productId" AS product_id, NULL AS name, count(*) OVER () AS total
FROM product_embeddings_v2 AS v2
WHERE NOT EXISTS (SELECT FROM products WHERE products.id = v2."productId")
ORDER BY v2."productId"
LIMIT %(sample)s
