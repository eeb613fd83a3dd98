-- How many products one invocation wrote something of.
SELECT count(DISTINCT product_id)
FROM ingestion.embedding_ledger
WHERE run_id IN (SELECT run_id FROM ingestion.spend WHERE invocation = %(invocation)s)
