-- What the shop's mapping gives for each aspect: rows, empty ones, and products with more than one row.
SELECT
    aspect,
    sum(row_total)::bigint AS row_total,
    sum(empty_rows)::bigint AS empty_rows,
    count(*) FILTER (WHERE product_id IS NULL) AS without_product,
    count(*) FILTER (WHERE row_total > 1 AND product_id IS NOT NULL) AS repeated,
    (array_agg(product_id::text ORDER BY product_id)
        FILTER (WHERE row_total > 1 AND product_id IS NOT NULL))[:10] AS repeated_sample
FROM (
    SELECT
        mapped.product_id,
        mapped.aspect::text AS aspect,
        count(*) AS row_total,
        count(*) FILTER (WHERE coalesce(btrim(mapped.text::text, E' \t\r\n'), '') = '') AS empty_rows
    FROM ({product_texts}) AS mapped
    GROUP BY mapped.product_id, mapped.aspect::text
) AS product_aspect
GROUP BY aspect
ORDER BY aspect
