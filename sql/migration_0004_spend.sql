-- What each committed batch took: requests, tokens, money and seconds.
CREATE TABLE ingestion.spend (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    invocation text NOT NULL,
    run_id text NOT NULL,
    range_key text NOT NULL,
    fingerprint text,
    requests integer NOT NULL,
    texts integer NOT NULL,
    embedded integer NOT NULL,
    reused integer NOT NULL,
    empty integer NOT NULL,
    failed integer NOT NULL,
    tokens bigint NOT NULL,
    cost numeric,
    seconds double precision NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
