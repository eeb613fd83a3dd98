-- What an interrupted concurrent build leaves behind is invalid, and only costs.
DROP INDEX CONCURRENTLY IF EXISTS {index}
