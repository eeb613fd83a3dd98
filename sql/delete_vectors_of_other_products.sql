-- After products was replaced: vectors of products that are gone, as their foreign key would do.
DELETE FROM {vectors} AS vectors
WHERE NOT EXISTS (SELECT FROM products WHERE products.id = vectors."productId")
