-- A lease is over when its time is up or when the server session that held it has ended.
DELETE FROM ingestion.leases
WHERE expires_at < now()
    OR NOT EXISTS (
        SELECT FROM pg_stat_activity WHERE pg_stat_activity.pid = leases.backend_pid
    )
