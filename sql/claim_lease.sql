-- Take a range for a run; the fence number tells its writes from those of any earlier holder.
INSERT INTO ingestion.leases (range_key, first_id, end_id, run_id, expires_at)
VALUES (
    %(range_key)s,
    %(first)s::{id_type},
    %(end)s::{id_type},
    %(run_id)s,
    clock_timestamp() + make_interval(secs => %(seconds)s)
)
RETURNING fence, expires_at
