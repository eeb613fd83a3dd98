-- What was ever spent on vectors of these fingerprints: what a budget covers.
SELECT coalesce(sum(tokens), 0)::bigint AS tokens, sum(cost) AS cost
FROM ingestion.spend
WHERE fingerprint = ANY(%(fingerprints)s)
