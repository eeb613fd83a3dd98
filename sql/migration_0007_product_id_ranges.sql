-- The ranges that tile the catalogue; Dagster's partitions follow this table.
CREATE TABLE ingestion.product_id_ranges (
    key text PRIMARY KEY,
    first_id {id_type} {collation},
    end_id {id_type} {collation}
)
