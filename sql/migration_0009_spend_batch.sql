-- The name of each batch, so that a commit whose reply was lost is not made twice.
ALTER TABLE ingestion.spend ADD COLUMN batch uuid UNIQUE
