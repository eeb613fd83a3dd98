-- Products, stale products and products with a failed aspect in each of the ranges cut at boundaries.
SELECT
    width_bucket(product_id, %(boundaries)s::{id_type}[]) AS position,
    count(*) AS product_total,
    count(*) FILTER (WHERE stale) AS stale_products,
    count(*) FILTER (WHERE failed AND NOT stale) AS failed_products
FROM (
    SELECT
        product_id,
        bool_or(state NOT IN ('done', 'empty', 'failed')) AS stale,
        bool_or(state = 'failed') AS failed
    FROM ({aspect_states}) AS aspect_state
    GROUP BY product_id
) AS product
GROUP BY position
ORDER BY position
