-- What creating v2 needs to know of products: may it be referenced, and the exact type of its id.
SELECT
    format_type(pg_attribute.atttypid, pg_attribute.atttypmod) AS id_column_type,
    pg_class.relkind IN ('r', 'p')
        AND pg_class.relpersistence = 'p'
        AND has_table_privilege(pg_class.oid, 'REFERENCES')
        AND EXISTS (
            SELECT FROM pg_index
            WHERE pg_index.indrelid = pg_class.oid
                AND pg_index.indisunique
                AND pg_index.indisvalid
                AND pg_index.indimmediate
                AND pg_index.indpred IS NULL
                AND pg_index.indnkeyatts = 1
                AND pg_index.indkey[0] = pg_attribute.attnum
        ) AS may_be_referenced,
    to_regclass(%(v2_table)s) IS NOT NULL AS v2_exists,
    to_regclass('ingestion.migrations') IS NOT NULL AS bookkeeping_exists,
    to_regnamespace('ingestion') IS NOT NULL AS schema_exists
FROM pg_class
JOIN pg_attribute ON pg_attribute.attrelid = pg_class.oid AND pg_attribute.attname = 'id'
WHERE pg_class.oid = to_regclass(%(products_table)s)
