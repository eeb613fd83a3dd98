-- The HNSW indexes of v2 on cosine distance: on which column, by which name, and whether usable.
SELECT
    pg_attribute.attname AS column_name,
    index_class.relname AS index_name,
    pg_index.indisvalid AS valid,
    pg_relation_size(index_class.oid) AS bytes
FROM pg_index
JOIN pg_class AS index_class ON index_class.oid = pg_index.indexrelid
JOIN pg_am ON pg_am.oid = index_class.relam AND pg_am.amname = 'hnsw'
JOIN pg_opclass ON pg_opclass.oid = pg_index.indclass[0] AND pg_opclass.opcname = 'vector_cosine_ops'
JOIN pg_attribute
    ON pg_attribute.attrelid = pg_index.indrelid AND pg_attribute.attnum = pg_index.indkey[0]
WHERE pg_index.indrelid = to_regclass(%(v2_table)s) AND pg_index.indpred IS NULL
ORDER BY column_name, index_name
