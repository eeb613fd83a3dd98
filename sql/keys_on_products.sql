-- The foreign keys that reference products: of which table, by which name, saying what.
SELECT
    pg_constraint.conrelid = to_regclass(%(v1_table)s)
        OR pg_constraint.conrelid = to_regclass(%(v2_table)s) AS holds_vectors,
    pg_namespace.nspname AS schema_name,
    pg_class.relname AS table_name,
    pg_constraint.conname AS constraint_name,
    pg_get_constraintdef(pg_constraint.oid) AS definition
FROM pg_constraint
JOIN pg_class ON pg_class.oid = pg_constraint.conrelid
JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_constraint.contype = 'f'
    AND pg_constraint.conparentid = 0
    AND pg_constraint.confrelid = to_regclass(%(products_table)s)
ORDER BY schema_name, table_name, constraint_name
