-- Whether the server answers these searches from the index.
EXPLAIN (FORMAT JSON)
{own_neighbours}
