-- What a batch took, in the transaction of its vectors; once, even if its commit is repeated.
INSERT INTO ingestion.spend (
    batch, invocation, run_id, range_key, fingerprint,
    requests, texts, embedded, reused, empty, failed, tokens, cost, price_version, seconds
) VALUES (
    %(batch)s, %(invocation)s, %(run_id)s, %(range_key)s, %(fingerprint)s,
    %(requests)s, %(texts)s, %(embedded)s, %(reused)s, %(empty)s, %(failed)s, %(tokens)s, %(cost)s,
    %(price_version)s, %(seconds)s
)
ON CONFLICT (batch) DO NOTHING
