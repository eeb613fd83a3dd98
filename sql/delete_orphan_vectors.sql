-- Vectors of products that are gone, where no foreign key takes them along.
DELETE FROM product_embeddings_v2
WHERE NOT EXISTS (SELECT FROM products WHERE products.id = product_embeddings_v2."productId")
