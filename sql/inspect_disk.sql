-- Where the server keeps its data, as far as this role may know, and how much WAL may lie there.
SELECT
    (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,
    extract(epoch FROM pg_postmaster_start_time())::bigint AS started_at,
    ARRAY(
        SELECT DISTINCT pg_tablespace_location(pg_tablespace.oid)
        FROM pg_tablespace
        WHERE pg_tablespace_location(pg_tablespace.oid) <> ''
            AND (
                pg_tablespace.spcname = current_setting('default_tablespace')
                OR pg_tablespace.oid = (
                    SELECT dattablespace FROM pg_database WHERE datname = current_database()
                )
                OR pg_tablespace.oid IN (
                    SELECT pg_class.reltablespace
                    FROM pg_class
                    LEFT JOIN pg_index ON pg_index.indexrelid = pg_class.oid
                    WHERE to_regclass(%(v2_table)s) IN (pg_class.oid, pg_index.indrelid)
                )
            )
    ) AS tablespaces,
    pg_size_bytes(current_setting('max_wal_size')) AS max_wal_bytes,
    EXISTS (SELECT FROM pg_replication_slots) AS keeps_wal_for_replicas
