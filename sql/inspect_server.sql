-- What the server is, and what this role may do in the database as a whole.
SELECT
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_version') AS version,
    current_database() AS database,
    current_user AS role,
    current_setting('search_path') AS search_path,
    pg_is_in_recovery() AS is_replica,
    current_setting('transaction_read_only')::boolean AS is_read_only,
    has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
    has_database_privilege(current_database(), 'TEMPORARY') AS may_create_temporary_table,
    (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS vector_version,
    to_regtype('vector') IS NOT NULL AS vector_is_visible,
    (
        SELECT pg_namespace.nspname
        FROM pg_extension
        JOIN pg_namespace ON pg_namespace.oid = pg_extension.extnamespace
        WHERE pg_extension.extname = 'vector'
    ) AS vector_schema,
    (
        SELECT default_version FROM pg_available_extensions WHERE name = 'vector'
    ) AS vector_available
