-- The live leases of other runs on any id of a range.
SELECT range_key, run_id, expires_at
FROM ingestion.leases
WHERE (first_id IS NULL OR %(end)s::{id_type} IS NULL OR first_id < %(end)s::{id_type})
    AND (end_id IS NULL OR %(first)s::{id_type} IS NULL OR end_id > %(first)s::{id_type})
ORDER BY expires_at DESC
