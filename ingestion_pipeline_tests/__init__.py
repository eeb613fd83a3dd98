"""The test suite: real PostgreSQL, real models, real Dagster.

`unit` needs none of them, `database` a server, `orchestration` Dagster too, `cli` the command line.
`faults` breaks things on purpose, and `acceptance` looks from outside, as a user does.
"""
