-- Every write begins here: no row means that the lease is another's, and locks it until commit.
UPDATE ingestion.leases
SET expires_at = clock_timestamp() + make_interval(secs => %(seconds)s), backend_pid = pg_backend_pid()
WHERE range_key = %(range_key)s AND fence = %(fence)s
RETURNING expires_at
