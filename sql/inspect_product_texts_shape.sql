-- No rows: only whether the shop's mapping parses, and which columns it gives.
SELECT * FROM ({product_texts}) AS mapped LIMIT 0
