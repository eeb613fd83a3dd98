-- What each fingerprint stands for, so that a change of it can be told in words.
CREATE TABLE ingestion.fingerprints (
    fingerprint text PRIMARY KEY,
    parts jsonb NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
)
