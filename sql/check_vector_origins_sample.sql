-- Products with a vector that the settings' model is not on record for: how many, and the first.
SELECT
    origin.product_id,
    products.name,
    string_agg(
        origin.aspect || CASE
            WHEN origin.fingerprint IS NOT NULL THEN ' of fingerprint ' || origin.fingerprint
            WHEN origin.meant_to_be_null IS NOT NULL THEN ' though ' || origin.meant_to_be_null
            ELSE ' of nobody on record'
        END,
        ', '
        ORDER BY origin.aspect
    ) AS detail,
    count(*) OVER () AS total
FROM ({vector_origins}) AS origin
JOIN unnest(%(aspects)s::text[], %(fingerprints)s::text[]) AS wanted (aspect, fingerprint)
    ON wanted.aspect = origin.aspect
LEFT JOIN products ON products.id = origin.product_id
WHERE origin.fingerprint IS DISTINCT FROM wanted.fingerprint
GROUP BY origin.product_id, products.name
ORDER BY origin.product_id
LIMIT %(sample)s
