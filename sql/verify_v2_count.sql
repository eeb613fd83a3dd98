-- How many rows the new table of embeddings has: one for each product when all is well.
SELECT count(*) AS v2_total FROM product_embeddings_v2
