-- The same where products cannot be referenced (a view, or no right to); the run removes orphans.
CREATE TABLE IF NOT EXISTS product_embeddings_v2 (
    "productId" {id_column_type} {collation} PRIMARY KEY,
    description_embedding vector({description_dimensions}),
    usage_embedding vector({usage_dimensions}),
    feature_embedding vector({feature_dimensions})
)
