"""The macros that precede each event: the usual ones, or those for which the milter asked.

The usual ones are those of Postfix (milter_connect_macros and others). A macro whose value isn't
known is left out, never sent empty.
"""

from __future__ import annotations

from functools import lru_cache

from . import vocabulary as v

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .negotiation import Agreement

#: The usual macros by event.
USUAL: dict[bytes, tuple[bytes, ...]] = {
    v.CONNECT: (b"j", b"_", b"v", b"{daemon_name}", b"{daemon_addr}", b"{daemon_port}"),
    v.HELO: (b"{tls_version}", b"{cipher}", b"{cipher_bits}"),
    v.MAIL: (
        b"i", b"{auth_type}", b"{auth_authen}", b"{auth_author}", b"{mail_addr}", b"{mail_host}",
        b"{mail_mailer}",
    ),
    v.RCPT: (b"i", b"{rcpt_addr}", b"{rcpt_host}", b"{rcpt_mailer}"),
    v.DATA: (b"i",),
    v.END_OF_HEADER: (b"i",),
    v.END_OF_BODY: (b"i",),
}  # fmt: skip


def chosen(event: bytes, agreed: Agreement | None) -> tuple[bytes, ...]:
    """Return the names of the macros for an event.

    The list of a milter replaces the usual one; its names may lack their braces.
    """
    asked = agreed.macros.get(event) if agreed is not None else None
    return USUAL.get(event, ()) if asked is None else _all_braced(asked)


@lru_cache(maxsize=64)  # each connection has its lists, nearly always the same
def _all_braced(asked: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(map(_braced, asked)))


def _braced(name: bytes) -> bytes:
    if len(name) > 1 and not name.startswith(b"{"):
        return b"{%b}" % name
    return name
