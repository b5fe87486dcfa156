"""What policies share: exemptions, client filters, strictness of checks, hosts, DNS look-ups."""
