"""Rspamd for tests: a `stub` with the answers that are set, and the real `daemon`."""
