-- Vectors on record, by aspect, and those of them whose text a run would now find empty.
SELECT
    ledger.aspect,
    count(*) AS committed,
    count(*) FILTER (WHERE coalesce(aspect_state.text, '') !~ '\S') AS emptied
FROM ingestion.embedding_ledger AS ledger
JOIN ({aspect_states}) AS aspect_state
    ON aspect_state.product_id = ledger.product_id AND aspect_state.aspect = ledger.aspect
WHERE ledger.outcome IN ('embedded', 'reused')
GROUP BY ledger.aspect
