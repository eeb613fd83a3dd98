-- Makes way for another catalogue. Without CASCADE: what else depends on it is not ours to drop.
DROP TABLE products
