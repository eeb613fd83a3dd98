-- Claims are made one at a time, so that two claims of overlapping ids cannot both succeed.
SELECT pg_advisory_xact_lock(hashtext('ingestion.leases'))
