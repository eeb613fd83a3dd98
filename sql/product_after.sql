-- The id that follows the first n products of a range: where a page of n products ends.
SELECT products.id
FROM products
WHERE (%(first)s::{id_type} IS NULL OR products.id >= %(first)s::{id_type})
    AND (%(end)s::{id_type} IS NULL OR products.id < %(end)s::{id_type})
ORDER BY products.id
OFFSET %(offset)s
LIMIT 1
