"""Benchmarks: one script a question; each prints a table."""
