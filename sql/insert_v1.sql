-- A product's vector in the sample shop's v1; a second demo at the same time changes nothing.
INSERT INTO product_embeddings ("productId", embedding)
VALUES (%(product_id)s, %(embedding)s)
ON CONFLICT DO NOTHING
