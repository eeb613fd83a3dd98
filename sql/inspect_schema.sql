-- Whether a schema is there, and what this role may do in it; NULL for the one that CREATE TABLE takes.
SELECT
    pg_namespace.nspname AS name,
    has_schema_privilege(pg_namespace.oid, 'USAGE') AS may_use,
    has_schema_privilege(pg_namespace.oid, 'CREATE') AS may_create,
    ARRAY(
        SELECT pg_class.relname
        FROM pg_class
        WHERE pg_class.relnamespace = pg_namespace.oid
            AND pg_class.relkind IN ('r', 'p')
            AND NOT (
                has_table_privilege(pg_class.oid, 'SELECT')
                AND has_table_privilege(pg_class.oid, 'INSERT')
                AND has_table_privilege(pg_class.oid, 'UPDATE')
                AND has_table_privilege(pg_class.oid, 'DELETE')
            )
        ORDER BY pg_class.relname
    )::text[] AS closed_tables
FROM pg_namespace
WHERE pg_namespace.nspname = coalesce(%(schema)s::text, current_schema())
