-- What is known of each aspect's committed vector; outcome says why there is none where there is none.
CREATE TABLE ingestion.embedding_ledger (
    product_id {id_type} {collation} NOT NULL,
    aspect text NOT NULL,
    text_digest bytea NOT NULL,
    fingerprint text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('embedded', 'reused', 'empty', 'failed', 'retry')),
    tokens integer NOT NULL DEFAULT 0,
    truncated boolean NOT NULL DEFAULT false,
    run_id text NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (product_id, aspect)
)
