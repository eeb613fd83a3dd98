-- The ranges in the order of ids.
SELECT key, first_id, end_id FROM ingestion.product_id_ranges ORDER BY first_id NULLS FIRST
