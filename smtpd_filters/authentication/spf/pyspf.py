"""pyspf without dnspython's resolver, which it imports for look-ups that `query` answers.

The resolver takes longer to import than pyspf and the rest of dnspython, and 3 MiB.
"""

from __future__ import annotations

import sys
from types import ModuleType

# pyspf uses both as attributes of `dns`.
import dns.exception
import dns.rdatatype  # noqa: F401

_RESOLVER = "dns.resolver"

_stand_in = ModuleType(_RESOLVER)
if sys.modules.setdefault(_RESOLVER, _stand_in) is _stand_in:
    try:
        import spf
    finally:
        # The next import of the resolver, by anyone, is that of dnspython's.
        del sys.modules[_RESOLVER]
else:
    import spf

__all__ = ["spf"]
