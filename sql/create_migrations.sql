-- Which numbered migrations this database has had.
CREATE TABLE IF NOT EXISTS ingestion.migrations (
    name text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)
