"""A loopback server that speaks OpenAI's embeddings API, keeps quotas, and fails on demand.

By hand: `python -m ingestion_pipeline_tests.embedding_server --help`. In tests: `running.running`.
"""
