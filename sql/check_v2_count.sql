-- The rows of v2 against the products that should each have one, at the same moment.
SELECT v2.v2_total, (SELECT count(*) FROM products) AS product_total
FROM ({verify_v2_count}) AS v2
