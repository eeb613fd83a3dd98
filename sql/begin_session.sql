-- First words of every session. One that its client has forgotten in a transaction keeps locks; under
-- a stricter isolation than this, what a lock was waited for would not be seen once it is granted.
SELECT
    to_regtype('vector') IS NOT NULL AS knows_vectors,
    set_config('TimeZone', 'UTC', false),
    set_config('default_transaction_isolation', 'read committed', false),
    CASE WHEN current_setting('idle_in_transaction_session_timeout') IN ('0', '0ms')
        THEN set_config('idle_in_transaction_session_timeout', '60s', false)
    END
