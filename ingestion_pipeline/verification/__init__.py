"""Is `product_embeddings_v2` what it should be? Checks as plain functions: SQL in, verdict out."""
