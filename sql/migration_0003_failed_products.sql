-- The aspects that could not be embedded, with the reason.
CREATE TABLE ingestion.failed_products (
    product_id {id_type} {collation} NOT NULL,
    aspect text NOT NULL,
    reason text NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    first_failed_at timestamptz NOT NULL DEFAULT now(),
    last_failed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (product_id, aspect)
)
