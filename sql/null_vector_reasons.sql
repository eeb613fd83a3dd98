-- Every missing vector of v2 with the reason on record for today's text: empty, failed, or none.
-- A sub-select of others.
SELECT
    null_vector.product_id,
    null_vector.aspect,
    CASE WHEN aspect_state.state IN ('empty', 'failed') THEN aspect_state.state END AS reason
FROM (
    SELECT null_row.product_id, missing.aspect
    FROM ({verify_null_vectors}) AS null_row
    CROSS JOIN LATERAL (
        VALUES
            ('description', null_row.description_is_null),
            ('usage', null_row.usage_is_null),
            ('feature', null_row.feature_is_null)
    ) AS missing (aspect, is_null)
    WHERE missing.is_null
) AS null_vector
LEFT JOIN ({aspect_states}) AS aspect_state
    ON aspect_state.product_id = null_vector.product_id
    AND aspect_state.aspect = null_vector.aspect
