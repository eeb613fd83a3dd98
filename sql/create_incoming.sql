-- Where a batch lands before it is checked against today's texts; empty again after each commit.
CREATE TEMPORARY TABLE IF NOT EXISTS incoming (
    product_id {id_type} {collation} NOT NULL,
    aspect text NOT NULL,
    text_digest bytea NOT NULL,
    fingerprint text NOT NULL,
    outcome text NOT NULL,
    embedding vector,
    tokens integer NOT NULL,
    truncated boolean NOT NULL,
    reason text
) ON COMMIT DELETE ROWS
