-- The aspect texts of a range whose vector is missing or out of date, in the order of ids.
SELECT product_id, aspect, fingerprint, text, text_digest
FROM ({aspect_states}) AS aspect_state
WHERE state NOT IN ('done', 'empty', 'failed')
ORDER BY product_id, aspect
