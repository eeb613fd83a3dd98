-- Put back as it was, after products was replaced.
ALTER TABLE {vectors} ADD CONSTRAINT {foreign_key} {definition}
