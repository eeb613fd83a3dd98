-- Name and dimensions of five products: 768, 768 and 384 with the models that come with this project.
SELECT
    products.name,
    vector_dims(v2.description_embedding) AS description_dimensions,
    vector_dims(v2.usage_embedding) AS usage_dimensions,
    vector_dims(v2.feature_embedding) AS feature_dimensions
FROM product_embeddings_v2 AS v2
JOIN products ON products.id = v2."productId"
ORDER BY v2."productId"
LIMIT 5
