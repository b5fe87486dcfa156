"""A client for protocols over TCP and unix sockets, with fail-over between equivalent servers.

`client` has the fail-over, `connection` one connection, and `address` the notation of addresses.
"""

from __future__ import annotations

from smtpd_filters.lookups.failover.failures import BadReplyError, NotKeptError

from .address import ADDRESS, Address
from .client import Client, SharedClient

__all__ = ["ADDRESS", "Address", "BadReplyError", "Client", "NotKeptError", "SharedClient"]
