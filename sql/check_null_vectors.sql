-- How many vectors are missing by aspect, and why; without a reason is what should not be.
SELECT aspect, reason, count(*) AS vectors
FROM ({null_vector_reasons}) AS null_vector
GROUP BY aspect, reason
ORDER BY aspect, reason
