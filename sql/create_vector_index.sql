-- Concurrently, since a plain build would make the shop's own deletes of products wait.
CREATE INDEX CONCURRENTLY {index} ON product_embeddings_v2 USING hnsw ({column} vector_cosine_ops)
