-- One planner at a time; readers are not kept waiting.
LOCK TABLE ingestion.product_id_ranges IN SHARE ROW EXCLUSIVE MODE
