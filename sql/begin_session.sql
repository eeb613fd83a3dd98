-- First words of every session. One that its client has forgotten in a transaction keeps locks.
SELECT
    to_regtype('vector') IS NOT NULL AS knows_vectors,
    set_config('TimeZone', 'UTC', false),
    CASE WHEN current_setting('idle_in_transaction_session_timeout') IN ('0', '0ms')
        THEN set_config('idle_in_transaction_session_timeout', '60s', false)
    END
