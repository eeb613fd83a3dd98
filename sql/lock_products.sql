-- Nobody writes a product or a vector between the count of what is lost and the replacement.
LOCK TABLE products IN ACCESS EXCLUSIVE MODE
