-- For this transaction: on a small table the planner reads every row, and the index goes untested.
SELECT set_config('enable_seqscan', 'off', true)
