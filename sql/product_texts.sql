-- The one file to fit to your shop: what text stands for each aspect of each product.
-- Rows of (product_id, aspect, text). Start every text with the product's name: on rated queries
-- that is worth 0.08 to 0.15 nDCG@10. Where an aspect says nothing, give NULL and not the bare name:
-- its vector then stays empty, and is listed as such. One SELECT; it runs in psql as it is. Keep
-- product_id a plain column, so that PostgreSQL can use its index, and return at most one row for
-- each product and aspect.
SELECT
    products.id AS product_id,
    aspect_text.aspect,
    products.name || E'.\n' || aspect_text.text AS text
FROM products
CROSS JOIN LATERAL (
    VALUES
        ('description', products.description),
        ('usage', products.usage),
        ('feature', products.features)
) AS aspect_text (aspect, text)
WHERE aspect_text.text ~ '\S'
