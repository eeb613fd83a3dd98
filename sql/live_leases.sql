-- Ranges that a run is working on right now: its time is not up, and its server session lives.
SELECT leases.range_key, leases.run_id
FROM ingestion.leases
WHERE leases.expires_at >= now()
    AND EXISTS (SELECT FROM pg_stat_activity WHERE pg_stat_activity.pid = leases.backend_pid)
ORDER BY leases.range_key
