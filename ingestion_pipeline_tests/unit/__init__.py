"""Tests of the pure parts, and of the models: no server."""
