-- Adds up what a budget covers without reading every row.
CREATE INDEX spend_by_fingerprint ON ingestion.spend (fingerprint) INCLUDE (tokens, cost)
