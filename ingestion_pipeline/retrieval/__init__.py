"""Finding products by their vectors."""
