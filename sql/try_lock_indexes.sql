-- One session at a time builds indexes: another's unfinished index looks like an abandoned one.
SELECT pg_try_advisory_lock(hashtext('ingestion.indexes'))
