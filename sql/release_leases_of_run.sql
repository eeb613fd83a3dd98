-- A run that is stopped holds nothing, not even a range whose claim was cut off after its commit.
DELETE FROM ingestion.leases WHERE run_id = %(run_id)s
