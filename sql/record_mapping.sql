-- The mapping in use, where it is not the one that was used last.
INSERT INTO ingestion.mappings (digest)
SELECT today.digest
FROM (SELECT sha256(convert_to(%(mapping)s::text, 'UTF8')) AS digest) AS today
WHERE today.digest IS DISTINCT FROM (
    SELECT latest.digest FROM ingestion.mappings AS latest ORDER BY latest.id DESC LIMIT 1
)
