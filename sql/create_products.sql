-- A products table with the columns of a catalogue file.
CREATE TABLE products ({columns}, PRIMARY KEY (id))
