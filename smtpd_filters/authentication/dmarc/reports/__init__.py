"""Aggregate reports of DMARC (RFC 9990): what is reported, as XML, and to whom.

Invariants
----------
*Valid XML*: texts come from senders and the DNS; what XML does not allow is replaced.
*Asked for*: a report goes to an address outside the policy's organization only if the owner of
that address has agreed in the DNS.
"""

from __future__ import annotations

from .destinations import Destination, destinations, is_domain
from .document import Report, xml
from .rows import Published, Row

__all__ = ["Destination", "Published", "Report", "Row", "destinations", "is_domain", "xml"]
