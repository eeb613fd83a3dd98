-- The ledger describes this table from now on: it is new, or the one before is gone.
INSERT INTO ingestion.described_table (v2)
VALUES (to_regclass(%(v2_table)s)::oid)
ON CONFLICT (only_row) DO UPDATE SET v2 = EXCLUDED.v2
