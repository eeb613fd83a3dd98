-- Without v1 there is nothing to compare v2 with.
SELECT to_regclass(%(v1_table)s) IS NOT NULL AS v1_exists
