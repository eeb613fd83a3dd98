-- Whether the server works on a statement of a session; one that waits for its client does not.
SELECT count(*) > 0
FROM pg_stat_activity
WHERE application_name = %(application_name)s
    AND state = 'active'
    AND wait_event_type IS DISTINCT FROM 'Client'
