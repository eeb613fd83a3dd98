-- The old table of embeddings beside the new one.
SELECT
    (SELECT count(*) FROM product_embeddings) AS v1_total,
    (SELECT count(*) FROM product_embeddings_v2) AS v2_total
