-- Binary: the text form of vectors costs ten times as much as everything else about a write.
COPY pg_temp.incoming (
    product_id, aspect, text_digest, fingerprint, outcome, embedding, tokens, truncated, reason
) FROM STDIN (FORMAT binary)
