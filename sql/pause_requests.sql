-- Nobody is given a place for a while: who asks for one gets one after it.
UPDATE ingestion.rate_limits
SET paused_until = greatest(paused_until, clock_timestamp() + make_interval(secs => %(seconds)s))
WHERE endpoint = %(endpoint)s
