-- How many products have text for each aspect.
SELECT mapped.aspect::text AS aspect, count(*) AS texts
FROM ({product_texts}) AS mapped
WHERE btrim(mapped.text::text, E' \t\r\n') <> ''
GROUP BY mapped.aspect::text
