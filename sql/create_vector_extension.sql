-- The embedded server comes with pgvector; a database of its own begins without it.
CREATE EXTENSION IF NOT EXISTS vector
