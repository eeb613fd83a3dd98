-- What a fingerprint of the settings stands for, the first time that it is used.
INSERT INTO ingestion.fingerprints (fingerprint, parts)
VALUES (%(fingerprint)s, %(parts)s)
ON CONFLICT (fingerprint) DO NOTHING
