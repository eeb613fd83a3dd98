-- The range is free again.
DELETE FROM ingestion.leases WHERE range_key = %(range_key)s AND fence = %(fence)s
