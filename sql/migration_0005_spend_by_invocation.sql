-- The report sums one invocation; the status page finds the latest.
CREATE INDEX spend_by_invocation ON ingestion.spend (invocation, finished_at)
