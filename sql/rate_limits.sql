-- The quota of each endpoint as it was last heard of.
SELECT endpoint, requests_per_minute, tokens_per_minute
FROM ingestion.rate_limits
