-- Written in the same transaction as the migration itself.
INSERT INTO ingestion.migrations (name) VALUES (%(name)s)
