"""A small shop, written for this project: what `ingest demo` and the tests put into `products`.

Its texts belong here, as data, and the code that reads them. Writing them to a database does not.
"""
