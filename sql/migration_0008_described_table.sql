-- Which table the ledger describes, so that it is never taken for a description of another.
CREATE TABLE ingestion.described_table (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    v2 oid NOT NULL
)
