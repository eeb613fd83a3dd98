-- The names of some products, for people to read.
SELECT products.id, products.name FROM products WHERE products.id = ANY(%(ids)s::{id_type}[])
