-- A table just loaded has no statistics yet, and its first plans would be poor ones.
ANALYZE products
