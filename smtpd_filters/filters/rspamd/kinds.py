"""Kinds of settings of filter-rspamd: the address of a daemon, and actions.

The invariants are those of `smtpd_filters.settings.kinds`.
"""

from __future__ import annotations

from smtpd_filters.lookups.http import Endpoint
from smtpd_filters.settings import Kind

from .edits import OUTCOMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.sandbox import Needs


class _Url(Kind[str]):
    metavar = "URL|PATH"
    noun = "http://HOST:PORT or the path of a socket"

    def parse(self, text: str) -> str:
        # Checking it imports a library: see `checked`.
        return text

    def declare(self, value: str, needs: Needs) -> None:
        Endpoint(value).declare(needs)


class _Action(Kind[tuple[str, str]]):
    metavar = "NAME=OUTCOME"
    noun = f"NAME=OUTCOME, with an outcome of {', '.join(OUTCOMES)}"

    def parse(self, text: str) -> tuple[str, str]:
        name, _, outcome = text.rpartition("=")
        if not name.strip() or outcome not in OUTCOMES:
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}")
        return name.strip(), outcome

    def show(self, value: tuple[str, str]) -> str:
        name, outcome = value
        return f"{name}={outcome}"


URL = _Url()
ACTION = _Action()


def checked(url: str) -> str:
    """Return a daemon's URL; raise ValueError if it is invalid."""
    Endpoint(url)
    return url
