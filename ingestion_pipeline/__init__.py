"""Re-embed a shop's whole product catalogue into `product_embeddings_v2`, and prove the result."""
