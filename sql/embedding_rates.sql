-- Texts a second that each model reached lately, to estimate the time of what is left.
SELECT fingerprint, sum(embedded)::bigint AS texts, sum(seconds) AS seconds
FROM (
    SELECT fingerprint, embedded, seconds
    FROM ingestion.spend
    WHERE embedded > 0 AND fingerprint IS NOT NULL
    ORDER BY id DESC
    LIMIT 200
) AS lately
GROUP BY fingerprint
