-- Products that the sample shop's v1 lacks, with the one text that v1 embeds.
SELECT products.id, concat_ws('. ', products.name, products.description) AS text
FROM products
WHERE NOT EXISTS (
    SELECT FROM product_embeddings WHERE product_embeddings."productId" = products.id
)
ORDER BY products.id
