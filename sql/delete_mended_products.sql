-- What failed once and has now succeeded leaves the table.
DELETE FROM ingestion.failed_products AS known
USING pg_temp.incoming AS mended
WHERE mended.outcome <> 'failed'
    AND known.product_id = mended.product_id
    AND known.aspect = mended.aspect
