"""Paths of which smtpd sends no report: the filters that rely on it refuse them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.filter import Filter, Registration
from smtpd_filters.protocol.decisions import PROCEED, Proceed
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.session import Session
    from smtpd_filters.testing import Verdict

LONGEST = f"{'l' * 245}@d.example"[1:]
LONG = f"l{LONGEST}"
BARE = "l" * 255


class Each(Filter):
    """A handler at each phase, of which `setup` registers some."""

    name = "each"
    seen: tuple[str, ...] = ()

    def setup(self) -> Registration:
        return Registration(self.seen, reports={"tx-begin"})

    def mail_from(self, _session: Session, _address: str) -> Proceed:
        return PROCEED

    def rcpt_to(self, session: Session, _address: str) -> Proceed:
        return self._known(session)

    def data(self, session: Session) -> Proceed:
        return self._known(session)

    def headers(self, session: Session, _headers: Headers) -> Proceed:
        return self._known(session)

    def message(self, session: Session, _message: Message) -> Proceed:
        return self._known(session)

    def commit(self, session: Session) -> Proceed:
        return self._known(session)

    @staticmethod
    def _known(session: Session) -> Proceed:
        assert session.tx is not None
        assert session.tx.sender is not None
        return PROCEED


class Waiting(Each):
    """The same in coroutines."""

    async def rcpt_to(self, session: Session, _address: str) -> Proceed:  # type: ignore[override]
        return self._known(session)

    async def data(self, session: Session) -> Proceed:  # type: ignore[override]
        return self._known(session)


class Unreading(Filter):
    """A filter that doesn't read transactions."""

    name = "unreading"
    addresses: list[str]

    def setup(self) -> Registration:
        self.addresses = []
        return Registration(reports=set())

    def mail_from(self, _session: Session, address: str) -> Proceed:
        self.addresses.append(address)
        return PROCEED


def of(kind: type[Each], *handlers: str) -> type[Each]:
    return type("Some", (kind,), {"seen": handlers, "__doc__": "Some of the handlers."})


def reply(filter_: type[Filter], sender: str, recipient: str = "a@b.example", *flags: str) -> str:
    """Send a message; return the reply that refused it, with its phase, or ""."""
    with Conversation(filter_, *flags) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        said: Verdict = client.mail_from(sender)
        if not said.refused:
            said = client.rcpt_to(recipient)
        if not said.refused:
            said = client.message(b"Subject: x\r\n\r\nx\r\n")
        assert not [line for line in smtpd.log if "error" in line]
        return f"{said.phase} {said.reply}" if said.refused else ""


@pytest.mark.parametrize("kind", [Each, Waiting])
@pytest.mark.parametrize(
    ("handlers", "said"),
    [
        (("mail_from", "rcpt_to"), "mail-from 501 5.1.7 Path too long"),
        (
            ("rcpt_to", "headers"),
            "rcpt-to 451 4.1.7 The sender's path is too long, or not known yet",
        ),
        (("data",), "data 451 4.1.7 The sender's path is too long, or not known yet"),
        (("headers",), "commit 451 4.1.7 The sender's path is too long, or not known yet"),
        (("message",), "commit 451 4.1.7 The sender's path is too long, or not known yet"),
        (("commit",), "commit 451 4.1.7 The sender's path is too long, or not known yet"),
    ],
)
def test_a_sender_that_smtpd_does_not_report(
    kind: type[Each], handlers: tuple[str, ...], said: str
) -> None:
    filter_ = of(kind, *handlers)
    assert reply(filter_, LONGEST) == ""
    assert reply(filter_, "") == ""
    for on_error in ("proceed", "tempfail"):
        assert reply(filter_, LONG, "a@b.example", "--on-error", on_error) == said
    assert reply(filter_, BARE) == said
    assert reply(filter_, "ü" * 123 + "@d.example") == said


@pytest.mark.parametrize("kind", [Each, Waiting])
def test_a_recipient_that_smtpd_does_not_report(kind: type[Each]) -> None:
    filter_ = of(kind, "rcpt_to")
    assert reply(filter_, "", LONGEST) == ""
    for recipient in (LONG, BARE):
        assert reply(filter_, "", recipient) == "rcpt-to 501 5.1.3 Path too long"


def test_a_dry_run_only_logs() -> None:
    with Conversation(of(Each, "mail_from"), "--dry-run") as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert client.mail_from(LONG).verb == "proceed"
        [line] = smtpd.log
        assert 'would=reject reason="more than 254 octets"' in line


def test_a_filter_that_reads_no_transaction_gets_the_address() -> None:
    with Conversation(Unreading) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert client.mail_from(LONG).verb == "proceed"
