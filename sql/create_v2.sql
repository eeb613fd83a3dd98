-- Three vectors a product; deleting a product takes its vectors along.
CREATE TABLE IF NOT EXISTS product_embeddings_v2 (
    "productId" {id_column_type} {collation} PRIMARY KEY REFERENCES products (id) ON DELETE CASCADE,
    description_embedding vector({description_dimensions}),
    usage_embedding vector({usage_dimensions}),
    feature_embedding vector({feature_dimensions})
)
