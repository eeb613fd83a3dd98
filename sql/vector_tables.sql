-- Which of the tables of vectors exist, so that only these are counted, cleared or dropped.
SELECT to_regclass(%(v1_table)s) IS NOT NULL, to_regclass(%(v2_table)s) IS NOT NULL
