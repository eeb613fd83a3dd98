-- Leases in the way of a claim that are over: their time is up, or their server session has ended.
-- A row that is locked is being renewed by a writer, so that lease lives: nobody waits for it.
DELETE FROM ingestion.leases
WHERE range_key IN (
    SELECT range_key
    FROM ingestion.leases
    WHERE (first_id IS NULL OR %(end)s::{id_type} IS NULL OR first_id < %(end)s::{id_type})
        AND (end_id IS NULL OR %(first)s::{id_type} IS NULL OR end_id > %(first)s::{id_type})
        AND (
            expires_at < clock_timestamp()
            OR NOT EXISTS (
                SELECT FROM pg_stat_activity WHERE pg_stat_activity.pid = leases.backend_pid
            )
        )
    FOR UPDATE SKIP LOCKED
)
