"""Faults caused on purpose, and what the database holds once the shop has recovered from each.

`audit` says what is lost or wrong in a shop, `record` makes the table that `make faults` prints,
`worker` is a main job that can be killed, and `proxy` a line that can be cut. In `make test` each
fault is caused a few times, in `make faults` (FAULTS=all) as often as its test promises.
"""
