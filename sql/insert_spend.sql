-- What a batch took, in the transaction of its vectors.
INSERT INTO ingestion.spend (
    invocation, run_id, range_key, fingerprint,
    requests, texts, embedded, reused, empty, failed, tokens, cost, seconds
) VALUES (
    %(invocation)s, %(run_id)s, %(range_key)s, %(fingerprint)s,
    %(requests)s, %(texts)s, %(embedded)s, %(reused)s, %(empty)s, %(failed)s, %(tokens)s, %(cost)s,
    %(seconds)s
)
