"""The filters that are measured: the least that shows what the framework costs."""

from __future__ import annotations

from smtpd_filters.chain import run
from smtpd_filters.filter import Filter
from smtpd_filters.protocol.decisions import PROCEED

TYPE_CHECKING = False  # the import of typing would count as ours
if TYPE_CHECKING:
    from smtpd_filters.message import Headers
    from smtpd_filters.protocol.decisions import Proceed
    from smtpd_filters.session import Session


class AddHeader(Filter):
    """Add a field to the header and pass the body."""

    name = "add-header"

    def headers(self, _session: Session, headers: Headers) -> Proceed:
        headers.prepend("X-Bench", "passed")
        return PROCEED


class SevenPhases(AddHeader):
    """Proceed in seven phases, and add a field to the header."""

    name = "seven-phases"

    def connect(self, _session: Session) -> Proceed:
        return PROCEED

    def ehlo(self, _session: Session, _identity: str, /) -> Proceed:
        return PROCEED

    def mail_from(self, _session: Session, _address: str, /) -> Proceed:
        return PROCEED

    def rcpt_to(self, _session: Session, _address: str, /) -> Proceed:
        return PROCEED

    def data(self, _session: Session) -> Proceed:
        return PROCEED

    def commit(self, _session: Session) -> Proceed:
        return PROCEED

    def quit(self, _session: Session) -> Proceed:
        return PROCEED


def add_header() -> int:
    """Run `AddHeader`, as an executable's entry point."""
    return run(AddHeader)


def seven_phases() -> int:
    """Run `SevenPhases`."""
    return run(SevenPhases)
