"""Texts to vectors: the `Embedder` protocol, the engines that keep it, and their model files.

Nothing here knows the database, Dagster or the terminal.
"""
