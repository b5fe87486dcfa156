"""A parser for the addresses of envelopes, in any spelling.

Nothing here raises: the texts come from the client.
"""

from __future__ import annotations

import re

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Address:
    """A mail address: its local part without quotes, and its domain as it is written.

    `local` is the local part. `domain` is empty if there is none: smtpd completes such an address
    with the server's name. Letter case is kept; tables ignore it.
    """

    __slots__ = ("domain", "local")

    def __init__(self, local: str, domain: str) -> None:
        self.local = local
        self.domain = domain

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `user@domain`; a quoted local part may contain an `@`."""
        local, domain = _split(text)
        return cls(unquoted(local), domain)

    def completed(self, server_name: str | None) -> Address:
        """Return the address as smtpd uses it: with the server's name if it has no domain."""
        if self.domain or not self.local or not server_name:
            return self
        return Address(self.local, server_name)

    def __bool__(self) -> bool:
        """Whether this is not the null sender."""
        return bool(self.local or self.domain)

    def __str__(self) -> str:
        if self.domain:
            return f"{self.local}@{self.domain}"
        return f'"{self.local}"' if "@" in self.local else self.local


def path(text: str) -> Address:
    """Parse an address of the envelope as smtpd does.

    Removes a source route, unnecessary quotes and final dots, so that the domain of `x@.` is empty,
    as that of `x`, which smtpd completes with its own name. The null sender is false.
    """
    text = text.strip(" \t")
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    # RFC 5321 section 4.1.2: Path = "<" [ A-d-l ":" ] Mailbox ">"; appendix C: servers "SHOULD
    # ignore the source route". An address literal may contain colons, but a route has none.
    if text.startswith("@") and ":" in text:
        text = text.partition(":")[2]
    local, domain = _split(text)
    if not _QUOTED.fullmatch(local):
        # smtpd drops everything before a colon, quotes and an "@" included.
        local = local.rpartition(":")[2]
    return Address(unquoted(local), domain.rstrip("."))


def _split(text: str) -> tuple[str, str]:
    """Return the local part, as it is written, and the domain."""
    if (quoted := _QUOTED.match(text)) and (text + "@")[quoted.end()] == "@":
        domain = text[quoted.end() + 1 :]
        if "@" not in domain:
            return quoted[0], domain
    local, at, domain = text.rpartition("@")
    return (local, domain) if at else (text, "")


def unquoted(local: str) -> str:
    """Return a local part without its quotes and the backslashes in them."""
    # RFC 5321 section 4.1.2: "the quoted form ... MUST be treated as equivalent".
    if len(local) > 1 and local[0] == local[-1] == '"':
        return unescaped(local[1:-1])
    return local


def unescaped(text: str) -> str:
    """Return a text with its quoted pairs (RFC 5322 section 3.2.1) resolved."""
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text
