-- An endpoint's row is there before the first request to it; what has been learnt stays.
INSERT INTO ingestion.rate_limits (endpoint) VALUES (%(endpoint)s)
ON CONFLICT (endpoint) DO NOTHING
