-- How many aspects of a range are in which state, and how many distinct texts they hold.
SELECT aspect, state, count(*) AS aspects, count(DISTINCT text_digest) AS distinct_texts
FROM ({aspect_states}) AS aspect_state
GROUP BY aspect, state
ORDER BY aspect, state
