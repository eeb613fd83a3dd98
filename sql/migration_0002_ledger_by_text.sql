-- Finds a vector that already stands for a text, so that no text is embedded twice.
CREATE INDEX embedding_ledger_by_text
ON ingestion.embedding_ledger (text_digest, fingerprint)
WHERE outcome IN ('embedded', 'reused')
