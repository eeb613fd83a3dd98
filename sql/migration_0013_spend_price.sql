-- Whose price list the cost of a batch was reckoned by.
ALTER TABLE ingestion.spend ADD COLUMN price_version text
