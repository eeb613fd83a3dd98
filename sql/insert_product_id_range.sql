-- A new range.
INSERT INTO ingestion.product_id_ranges (key, first_id, end_id)
VALUES (%(key)s, %(first)s::{id_type}, %(end)s::{id_type})
