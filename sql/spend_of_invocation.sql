-- What one invocation took, or the latest one.
SELECT
    invocation,
    min(finished_at - make_interval(secs => seconds)) AS started_at,
    max(finished_at) AS finished_at,
    sum(requests)::bigint AS requests,
    sum(texts)::bigint AS texts,
    sum(embedded)::bigint AS embedded,
    sum(reused)::bigint AS reused,
    sum(empty)::bigint AS empty,
    sum(failed)::bigint AS failed,
    sum(tokens)::bigint AS tokens,
    sum(cost) AS cost,
    sum(seconds) AS seconds
FROM ingestion.spend
WHERE invocation = coalesce(
    %(invocation)s::text,
    (SELECT latest.invocation FROM ingestion.spend AS latest ORDER BY latest.id DESC LIMIT 1)
)
GROUP BY invocation
