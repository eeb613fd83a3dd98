-- Aspects whose text or model has changed, by what was behind them: a fingerprint and a mapping.
-- Of a mapping that was used before the record begins, nothing is claimed.
SELECT
    aspect_state.aspect,
    aspect_state.state,
    known.parts,
    coalesce(
        (
            SELECT mapping.digest
            FROM ingestion.mappings AS mapping
            WHERE mapping.used_since <= ledger.written_at
            ORDER BY mapping.id DESC
            LIMIT 1
        ) <> (SELECT latest.digest FROM ingestion.mappings AS latest ORDER BY latest.id DESC LIMIT 1),
        false
    ) AS remapped,
    count(*) AS aspects
FROM ({aspect_states}) AS aspect_state
JOIN ingestion.embedding_ledger AS ledger
    ON ledger.product_id = aspect_state.product_id AND ledger.aspect = aspect_state.aspect
LEFT JOIN ingestion.fingerprints AS known ON known.fingerprint = ledger.fingerprint
WHERE aspect_state.state IN ('text changed', 'model changed')
GROUP BY aspect_state.aspect, aspect_state.state, known.parts, remapped
ORDER BY aspect_state.aspect, aspect_state.state, aspects DESC, known.parts::text
