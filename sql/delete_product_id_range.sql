-- A range that has been cut into smaller ones.
DELETE FROM ingestion.product_id_ranges WHERE key = %(key)s
