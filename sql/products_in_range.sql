-- How many products a range has.
SELECT count(*)
FROM products
WHERE (%(first)s::{id_type} IS NULL OR products.id >= %(first)s::{id_type})
    AND (%(end)s::{id_type} IS NULL OR products.id < %(end)s::{id_type})
