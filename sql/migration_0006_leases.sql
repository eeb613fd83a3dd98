-- Who works on which ids. Times are the database's; a fence number outlives every lease before it.
CREATE TABLE ingestion.leases (
    range_key text PRIMARY KEY,
    first_id {id_type} {collation},
    end_id {id_type} {collation},
    run_id text NOT NULL,
    fence bigint GENERATED ALWAYS AS IDENTITY,
    backend_pid integer NOT NULL DEFAULT pg_backend_pid(),
    claimed_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
)
