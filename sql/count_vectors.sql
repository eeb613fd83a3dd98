-- How many rows a table of vectors has.
SELECT count(*) FROM {vectors}
