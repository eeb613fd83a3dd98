-- Products with an aspect that a run would work on, and why: how many, and the first.
SELECT
    aspect_state.product_id,
    products.name,
    string_agg(
        aspect_state.aspect || ' ' || aspect_state.state, ', ' ORDER BY aspect_state.aspect
    ) AS detail,
    count(*) OVER () AS total
FROM ({aspect_states}) AS aspect_state
JOIN products ON products.id = aspect_state.product_id
WHERE aspect_state.state NOT IN ('done', 'empty', 'failed')
GROUP BY aspect_state.product_id, products.name
ORDER BY aspect_state.product_id
LIMIT %(sample)s
