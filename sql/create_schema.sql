-- Where the bookkeeping lives, apart from the shop's own tables.
CREATE SCHEMA ingestion
