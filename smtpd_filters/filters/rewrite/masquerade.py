"""Masquerading: the names of machines below a domain are removed from addresses.

`example.org` turns `joe@pc.example.org` into `joe@example.org`; `!lab.example.org` before it keeps
those of `lab.example.org`. This is masquerade_domains of Postfix.
"""

from __future__ import annotations

from smtpd_filters.addresses import canonical
from smtpd_filters.settings import Kind
from smtpd_filters.settings.quoting import quote
from smtpd_filters.tables.domains import domain_entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def masqueraded(domain: str, entries: Iterable[str]) -> str:
    """Return the domain that hides another one, which is returned if none does.

    The first entry counts that is the domain itself or one above it.
    """
    name = canonical(domain)
    for entry in entries:
        keeps, above = entry.startswith("!"), entry.removeprefix("!")
        if name == above:
            return domain
        if name.endswith(f".{above}"):
            return domain if keeps else above
    return domain


class _Entry(Kind[str]):
    metavar = "DOMAIN"
    noun = "a domain, or one behind an exclamation mark"

    def parse(self, text: str) -> str:
        keeps, name = text.startswith("!"), text.removeprefix("!")
        if "*" in name or "." not in name:
            raise ValueError(f"expected {self.noun}, not {quote(text)}")
        return ("!" if keeps else "") + domain_entry(name, literals=False)


#: The kind of `--masquerade`.
ENTRY = _Entry()
