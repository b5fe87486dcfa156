"""Rspamd for tests: a `stub` with preset answers, and the real `daemon`."""
