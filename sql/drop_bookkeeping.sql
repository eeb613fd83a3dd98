-- The bookkeeping of a catalogue whose ids were of another type.
DROP SCHEMA ingestion CASCADE
