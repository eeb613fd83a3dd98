-- For this transaction: how many candidates an HNSW index keeps while it searches; 40 is its default.
SELECT set_config('hnsw.ef_search', %(candidates)s::text, true)
