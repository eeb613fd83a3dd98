-- Every n-th id of a range: the first ids of the ranges above the first, when cut into n products.
SELECT id
FROM (
    SELECT products.id, row_number() OVER (ORDER BY products.id) AS place
    FROM products
    WHERE (%(first)s::{id_type} IS NULL OR products.id >= %(first)s::{id_type})
        AND (%(end)s::{id_type} IS NULL OR products.id < %(end)s::{id_type})
) AS placed
WHERE place > 1 AND (place - 1) %% %(every)s = 0
ORDER BY id
