"""Addresses of envelopes: what is meant by one, however the client spells it.

Nothing here raises: the texts are the client's.
"""

from __future__ import annotations

import re

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Address:
    """A mail address: its local part without quotes, its domain as it is written.

    `local` is the local part. `domain` is empty where there is none: smtpd completes such an
    address with the name of the server. Letter case is left to the tables, which don't regard it.
    """

    __slots__ = ("domain", "local")

    def __init__(self, local: str, domain: str) -> None:
        self.local = local
        self.domain = domain

    @classmethod
    def parse(cls, text: str) -> Address:
        """Take ``user@domain`` apart; a local part in quotes may hold an ``@``."""
        if (quoted := _QUOTED.match(text)) and (text + "@")[quoted.end()] == "@":
            domain = text[quoted.end() + 1 :]
            if "@" not in domain:
                return cls(unquoted(quoted[0]), domain)
        local, at, domain = text.rpartition("@")
        return cls(unquoted(local), domain) if at else cls(unquoted(text), "")

    def completed(self, server_name: str | None) -> Address:
        """Give the address as smtpd takes it: with the server's name where it has no domain."""
        if self.domain or not self.local or not server_name:
            return self
        return Address(self.local, server_name)

    def __bool__(self) -> bool:
        """Whether it is any: not the null sender."""
        return bool(self.local or self.domain)

    def __str__(self) -> str:
        if self.domain:
            return f"{self.local}@{self.domain}"
        return f'"{self.local}"' if "@" in self.local else self.local


def path(text: str) -> Address:
    """Understand an envelope's address as smtpd does.

    The client's spelling is gone: a source route, quotes that aren't needed, final dots.
    """
    text = text.strip(" \t")
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    # RFC 5321 section 4.1.2: Path = "<" [ A-d-l ":" ] Mailbox ">"; appendix C: servers "SHOULD
    # ignore the source route". A literal may hold colons, but a route has no literal.
    if text.startswith("@") and ":" in text:
        text = text.partition(":")[2]
    address = Address.parse(text)
    if not text.startswith('"'):
        # smtpd drops what stands before a colon, "@" or not.
        address.local = address.local.rpartition(":")[2]
    address.domain = address.domain.rstrip(".")
    return address


def unquoted(local: str) -> str:
    """Give a local part without quotes and the backslashes in them."""
    # RFC 5321 section 4.1.2: "the quoted form ... MUST be treated as equivalent".
    if len(local) > 1 and local[0] == local[-1] == '"':
        return unescaped(local[1:-1])
    return local


def unescaped(text: str) -> str:
    """Give a text with its quoted pairs (RFC 5322 section 3.2.1) resolved."""
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text
