"""Everything that speaks to PostgreSQL: its server, its connections, its tables."""
