-- Drop what was made from a text that has been edited, or for a product that is gone, meanwhile.
DELETE FROM pg_temp.incoming
WHERE NOT EXISTS (
    SELECT FROM products
    LEFT JOIN (
        SELECT mapped.product_id, mapped.aspect, mapped.text
        FROM ({product_texts}) AS mapped
        WHERE mapped.product_id = ANY(%(product_ids)s::{id_type}[])
    ) AS aspect_text
        ON aspect_text.product_id = products.id AND aspect_text.aspect = incoming.aspect
    WHERE products.id = incoming.product_id
        AND sha256(convert_to(coalesce(aspect_text.text, ''), 'UTF8')) = incoming.text_digest
)
RETURNING product_id, aspect
