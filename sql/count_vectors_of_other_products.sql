-- How many rows of a table of vectors belong to products that are not among the given ids.
SELECT count(*)
FROM {vectors} AS vectors
WHERE NOT EXISTS (
    SELECT FROM unnest(%(ids)s::{new_id_type}[]) AS kept (id) WHERE kept.id = vectors."productId"
)
