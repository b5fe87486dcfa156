"""Building blocks of policies: exemptions, client filters, strictness of checks, host names."""
