-- A table of vectors whose ids are of another type than the new catalogue's.
DROP TABLE {vectors}
