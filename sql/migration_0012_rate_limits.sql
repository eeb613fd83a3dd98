-- The pace of requests to each model of each endpoint, shared by all workers.
CREATE TABLE ingestion.rate_limits (
    endpoint text PRIMARY KEY,
    requests_per_minute double precision CHECK (requests_per_minute > 0),
    tokens_per_minute double precision CHECK (tokens_per_minute > 0),
    next_request_at timestamptz NOT NULL DEFAULT '-infinity',
    next_tokens_at timestamptz NOT NULL DEFAULT '-infinity',
    paused_until timestamptz NOT NULL DEFAULT '-infinity',
    heard_at timestamptz
)
