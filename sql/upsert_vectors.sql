-- One aspect's vectors of a batch; in the order of ids, so that two writers cannot deadlock.
INSERT INTO product_embeddings_v2 ("productId", {column})
SELECT product_id, embedding
FROM pg_temp.incoming
WHERE aspect = %(aspect)s
ORDER BY product_id
ON CONFLICT ("productId") DO UPDATE SET {column} = EXCLUDED.{column}
