-- What stands under the name of the products table, and whether it is the sample shop's.
SELECT
    pg_class.relkind IN ('r', 'p') AS is_table,
    obj_description(pg_class.oid, 'pg_class') AS comment
FROM pg_class
WHERE pg_class.oid = to_regclass(%(products_table)s)
