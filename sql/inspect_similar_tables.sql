-- Tables whose name differs only in case or schema, for whoever mistyped it.
SELECT pg_namespace.nspname || '.' || pg_class.relname AS name
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_class.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND rtrim(lower(pg_class.relname), 's') = rtrim(lower(%(table)s), 's')
    AND pg_namespace.nspname <> 'information_schema'
    AND pg_namespace.nspname NOT LIKE 'pg_%%'
ORDER BY name
LIMIT 5
