-- Set aside while products is replaced.
ALTER TABLE {vectors} DROP CONSTRAINT {foreign_key}
