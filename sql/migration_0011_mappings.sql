-- Which mapping gave the aspect texts since when: a row for each change of it, the newest in use.
CREATE TABLE ingestion.mappings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL,
    used_since timestamptz NOT NULL DEFAULT now()
)
