"""Fail-over between equivalent servers, for clients of any protocol.

`group` has the servers and the order in which they are asked, `attempts` one request at each of
them, `breaker` the servers that are passed over, and `failures` why an attempt failed. The clients
are `smtpd_filters.lookups.http` and `smtpd_filters.lookups.stream`.
"""
