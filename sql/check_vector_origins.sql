-- How many vectors each column of v2 has of which fingerprint, and what that stands for.
SELECT
    origin.aspect,
    origin.fingerprint,
    known.parts,
    count(*) AS vectors,
    count(origin.meant_to_be_null) AS meant_to_be_null
FROM ({vector_origins}) AS origin
LEFT JOIN ingestion.fingerprints AS known ON known.fingerprint = origin.fingerprint
GROUP BY origin.aspect, origin.fingerprint, known.parts
ORDER BY origin.aspect, vectors DESC, origin.fingerprint
