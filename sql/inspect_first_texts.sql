-- Digests of what the mapping gives for the first products: asked twice, they must be the same.
SELECT
    mapped.product_id::text AS product_id,
    mapped.aspect::text AS aspect,
    sha256(
        convert_to(string_agg(mapped.text::text, E'\n' ORDER BY mapped.text::text), 'UTF8')
    ) AS text_digest
FROM ({product_texts}) AS mapped
WHERE mapped.product_id IN (
    SELECT products.id FROM products ORDER BY products.id LIMIT %(products)s
)
GROUP BY mapped.product_id, mapped.aspect::text
ORDER BY mapped.product_id, mapped.aspect::text
