-- Marks the sample shop, so that the demo never takes another catalogue for it.
COMMENT ON TABLE products IS {comment}
