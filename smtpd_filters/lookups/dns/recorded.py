"""A resolver that answers from recorded outcomes, and sends nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_filters.lookups.outcome import INVALID, NotFound, Unavailable

from . import names
from .resolver import Resolver, check_question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from smtpd_filters.lookups.outcome import Outcome

#: Why a look-up has no outcome.
NOT_RECORDED = "this look-up is not recorded"
#: A resolver needs a server, though this one sends nothing.
_NOWHERE = (("127.0.0.1", 53),)


class RecordedResolver(Resolver):
    """A resolver with outcomes by question (`A name`), in place of servers.

    `missing` is called with each question that has none; it is Unavailable.
    """

    def __init__(
        self, outcomes: Mapping[str, Outcome[Any]], missing: Callable[[str], object]
    ) -> None:
        super().__init__(_NOWHERE)
        self._outcomes = outcomes
        self._missing = missing

    def known(self, name: str, rdtype: Any) -> Outcome[Any]:
        """Return the recorded outcome, or Unavailable."""
        check_question(name, rdtype)
        try:
            question = f"{rdtype} {names.domain(name)}"
        except ValueError:
            return NotFound(INVALID)
        found = self._outcomes.get(question)
        if found is None:
            self._missing(question)
            return Unavailable(NOT_RECORDED)
        return found

    def missing(self, names: Iterable[str], rdtype: Any) -> bool:
        """Return whether all these names, in canonical form, are recorded as not found."""
        outcomes = (self._outcomes.get(f"{rdtype} {name}") for name in names)
        return all(isinstance(each, NotFound) for each in outcomes)
