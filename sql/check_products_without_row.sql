-- Products that v2 does not know: how many, and the first of them.
SELECT products.id AS product_id, products.name, count(*) OVER () AS total
FROM products
WHERE NOT EXISTS (SELECT FROM product_embeddings_v2 AS v2 WHERE v2."productId" = products.id)
ORDER BY products.id
LIMIT %(sample)s
