-- The table that the ledger describes, if it still exists, and the one that the settings name.
SELECT
    (
        SELECT described.v2::regclass::text
        FROM ingestion.described_table AS described
        JOIN pg_class ON pg_class.oid = described.v2
    ) AS described,
    to_regclass(%(v2_table)s)::text AS named
