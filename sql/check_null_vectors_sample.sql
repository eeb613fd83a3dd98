-- Products with a missing vector that has a reason on record, or has none: how many, and the first.
SELECT
    null_vector.product_id,
    products.name,
    string_agg(
        concat_ws(' ', null_vector.aspect, null_vector.reason), ', ' ORDER BY null_vector.aspect
    ) AS detail,
    count(*) OVER () AS total
FROM ({null_vector_reasons}) AS null_vector
LEFT JOIN products ON products.id = null_vector.product_id
WHERE (null_vector.reason IS NOT NULL) = %(explained)s
GROUP BY null_vector.product_id, products.name
ORDER BY null_vector.product_id
LIMIT %(sample)s
