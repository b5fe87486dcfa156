"""The kind of setting for an action of filter-rspamd.

The invariants are those of `smtpd_filters.settings.kind`.
"""

from __future__ import annotations

from smtpd_filters.settings import Kind

from .edits import OUTCOMES


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


ACTION = _Action()
