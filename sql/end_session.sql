-- End a session whose client has lost it, so that it neither holds locks nor commits any more.
SELECT pg_terminate_backend(pid, 5000)
FROM pg_stat_activity
WHERE application_name = %(application_name)s AND pid <> pg_backend_pid()
