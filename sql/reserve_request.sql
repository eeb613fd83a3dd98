-- Takes the next place in time for a request, after those of all workers: the virtual scheduling
-- algorithm (GCRA), one for requests and one for tokens. Whoever comes first is served first. A
-- place that nobody would wait for is told, and not taken.
WITH before AS (
    SELECT
        next_request_at,
        next_tokens_at,
        paused_until,
        coalesce(%(requests_per_minute)s::double precision, requests_per_minute) * %(share)s AS requests,
        coalesce(%(tokens_per_minute)s::double precision, tokens_per_minute) * %(share)s AS tokens
    FROM ingestion.rate_limits
    WHERE endpoint = %(endpoint)s
    FOR UPDATE
),
clock AS (
    SELECT
        before.*,
        clock_timestamp() AS now,
        -- The endpoint has the last word: no limit of ours keeps everybody waiting for longer.
        make_interval(secs => least(coalesce(60.0 / requests, 0), %(longest_gap)s::double precision)) AS request_takes,
        make_interval(
            secs => least(coalesce(60.0 * %(tokens)s / tokens, 0), %(longest_gap)s::double precision)
        ) AS tokens_take
    FROM before
),
free AS (
    SELECT
        clock.*,
        greatest(next_request_at, paused_until, now) AS request_at,
        greatest(next_tokens_at, paused_until, now) AS tokens_at
    FROM clock
),
place AS (
    SELECT free.*, greatest(request_at, tokens_at) AS place_at
    FROM free
),
taken AS (
    UPDATE ingestion.rate_limits AS it
    -- What one limit leaves unused while the other one is waited for is made up for in part only.
    SET
        next_request_at = greatest(request_at, place_at - interval '1 second') + request_takes,
        next_tokens_at = greatest(tokens_at, place_at - interval '1 second') + tokens_take
    FROM place
    WHERE it.endpoint = %(endpoint)s AND place_at - now <= make_interval(secs => %(longest_wait)s)
)
SELECT extract(epoch FROM place_at - now)::double precision AS seconds
FROM place
