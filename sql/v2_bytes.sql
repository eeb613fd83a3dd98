-- Bytes of v2 with its TOAST, and of its indexes.
SELECT
    pg_table_size(to_regclass(%(v2_table)s)) AS table_bytes,
    pg_indexes_size(to_regclass(%(v2_table)s)) AS index_bytes
