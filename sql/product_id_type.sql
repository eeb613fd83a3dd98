-- The type and collation of products.id, which the bookkeeping's tables copy.
SELECT
    pg_type.typname,
    CASE WHEN pg_collation.collname <> 'default' THEN pg_collation.collname END AS collation_name,
    CASE WHEN pg_collation.collname <> 'default' THEN pg_namespace.nspname END AS collation_schema
FROM pg_attribute
JOIN pg_type ON pg_type.oid = pg_attribute.atttypid
LEFT JOIN pg_collation ON pg_collation.oid = pg_attribute.attcollation
LEFT JOIN pg_namespace ON pg_namespace.oid = pg_collation.collnamespace
WHERE pg_attribute.attrelid = to_regclass(%(products_table)s)
    AND pg_attribute.attname = 'id'
    AND NOT pg_attribute.attisdropped
