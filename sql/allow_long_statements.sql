-- An index takes as long as it takes, whatever the role's limit for a shop's statements is.
SELECT set_config('statement_timeout', '0', false)
