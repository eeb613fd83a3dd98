-- The sample shop's v1: one vector a product; empty at first, and again where somebody dropped it.
CREATE TABLE IF NOT EXISTS product_embeddings (
    "productId" integer PRIMARY KEY REFERENCES products (id) ON DELETE CASCADE,
    embedding vector(384)
)
