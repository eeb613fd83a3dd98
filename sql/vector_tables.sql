-- What there is of vectors and bookkeeping, so that only this is counted, cleared or dropped.
SELECT
    to_regclass(%(v1_table)s) IS NOT NULL AS v1_exists,
    to_regclass(%(v2_table)s) IS NOT NULL AS v2_exists,
    to_regnamespace('ingestion') IS NOT NULL AS bookkeeping_exists
