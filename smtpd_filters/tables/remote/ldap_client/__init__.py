"""An LDAP client: `ber`, `filters`, `messages` and `engine` without I/O, `client` with it."""
