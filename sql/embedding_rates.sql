-- How each model did lately, to estimate what is left.
SELECT
    fingerprint,
    sum(texts)::bigint AS texts,
    sum(tokens)::bigint AS tokens,
    sum(seconds) AS seconds
FROM (
    SELECT fingerprint, texts, tokens, seconds
    FROM ingestion.spend
    WHERE texts > 0 AND fingerprint IS NOT NULL
    ORDER BY id DESC
    LIMIT 200
) AS lately
GROUP BY fingerprint
