-- One process at a time brings the bookkeeping up to date; the lock goes with the transaction.
SELECT pg_advisory_xact_lock(hashtext('ingestion.migrations'))
