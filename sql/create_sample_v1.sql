-- The sample shop's v1: one vector a product.
CREATE TABLE product_embeddings (
    "productId" integer PRIMARY KEY REFERENCES products (id) ON DELETE CASCADE,
    embedding vector(384)
)
