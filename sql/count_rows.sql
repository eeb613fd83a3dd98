-- How many rows a table has, named to the user before it is replaced.
SELECT count(*) FROM {table}
