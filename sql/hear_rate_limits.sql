-- What an answer said of the limits, and by how much its tokens differ from those reserved for it.
UPDATE ingestion.rate_limits AS it
SET
    requests_per_minute = coalesce(%(requests_per_minute)s, it.requests_per_minute),
    tokens_per_minute = coalesce(%(tokens_per_minute)s, it.tokens_per_minute),
    next_tokens_at = it.next_tokens_at + make_interval(
        secs => greatest(
            least(
                coalesce(
                    60.0 * %(tokens_more)s / (
                        coalesce(%(tokens_set)s, %(tokens_per_minute)s, it.tokens_per_minute)
                        * %(share)s
                    ),
                    0
                ),
                %(longest_gap)s::double precision
            ),
            - %(longest_gap)s::double precision
        )
    ),
    heard_at = clock_timestamp()
WHERE it.endpoint = %(endpoint)s
