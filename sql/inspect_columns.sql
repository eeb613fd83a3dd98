-- The columns of a table: type, whether a row must give it a value, whether it alone is a key.
SELECT
    pg_attribute.attname AS name,
    format_type(pg_attribute.atttypid, NULL) AS type,
    nullif(pg_attribute.atttypmod, -1) AS type_modifier,
    pg_attribute.attnotnull
        AND NOT pg_attribute.atthasdef
        AND pg_attribute.attidentity = '' AS is_required,
    has_column_privilege(pg_class.oid, pg_attribute.attnum, 'SELECT') AS may_select,
    EXISTS (
        SELECT FROM pg_index
        WHERE pg_index.indrelid = pg_class.oid
            AND pg_index.indisunique
            AND pg_index.indisvalid
            AND pg_index.indimmediate
            AND pg_index.indpred IS NULL
            AND pg_index.indnkeyatts = 1
            AND pg_index.indkey[0] = pg_attribute.attnum
    ) AS is_key
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
JOIN pg_attribute ON pg_attribute.attrelid = pg_class.oid
WHERE pg_namespace.nspname = %(schema)s
    AND pg_class.relname = %(table)s
    AND pg_attribute.attnum > 0
    AND NOT pg_attribute.attisdropped
ORDER BY pg_attribute.attnum
