-- A table or view as the catalogue knows it, and what this role may do with it; no row: not there.
SELECT
    pg_namespace.nspname AS schema,
    pg_class.relname AS name,
    pg_class.relkind::text AS kind,
    has_schema_privilege(pg_namespace.oid, 'USAGE') AS may_use_schema,
    pg_has_role(pg_class.relowner, 'USAGE') AS is_owner,
    has_table_privilege(pg_class.oid, 'SELECT') AS may_select,
    has_table_privilege(pg_class.oid, 'INSERT') AS may_insert,
    has_table_privilege(pg_class.oid, 'UPDATE') AS may_update,
    has_table_privilege(pg_class.oid, 'DELETE') AS may_delete,
    has_table_privilege(pg_class.oid, 'REFERENCES') AS may_reference,
    row_security_active(pg_class.oid) AS hides_rows
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_class.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND pg_class.relname = %(table)s
    AND CASE
        WHEN %(schema)s::text IS NULL THEN pg_table_is_visible(pg_class.oid)
        ELSE pg_namespace.nspname = %(schema)s::text
    END
