"""A policy that can't find out what it must know: UnavailableError, from any kind of handler."""

from __future__ import annotations

import pytest

from smtpd_filters.errors import UnavailableError
from smtpd_filters.filter import Filter
from smtpd_filters.message import Headers
from smtpd_filters.protocol.decisions import PROCEED, Proceed, Reject
from smtpd_filters.session import Session
from smtpd_filters.testing import Conversation


class Plain(Filter):
    """Can't find out at EHLO."""

    def ehlo(self, session: Session, _identity: str) -> Proceed:
        raise UnavailableError(f"no answer about {session.src}", "4.4.3")


class Awaited(Filter):
    """Can't find out at EHLO, after a while."""

    async def ehlo(self, session: Session, _identity: str) -> Proceed:
        raise UnavailableError(f"no answer about {session.src}", "4.4.3")


class General(Filter):
    """Doesn't say what is broken; at connect a temporary failure hangs up."""

    def connect(self, _session: Session) -> Proceed:
        raise UnavailableError("the store is gone")


class Content(Filter):
    """Edits the header, then can't find out the rest."""

    def headers(self, _session: Session, headers: Headers) -> Proceed | Reject:
        headers.prepend("X-Half", "done")
        raise UnavailableError("the scanner is gone")


@pytest.mark.parametrize("cls", [Plain, Awaited])
def test_on_error_decides_and_the_cause_is_logged(cls: type[Filter]) -> None:
    for on_error, verb, reply in (
        ("proceed", "proceed", ""),
        ("junk", "junk", ""),
        ("tempfail", "reject", "451 4.4.3 Temporary failure, please try again later"),
    ):
        with Conversation(cls, "--on-error", on_error) as smtpd:
            client = smtpd.connect()
            said = client.ehlo()
            assert (said.verb, said.reply) == (verb, reply)
            cause = 'cause="no answer about 192.0.2.1:33174"'
            told = f' reply="{reply}"' if reply else ""
            assert smtpd.log == [f"{client.id} {cls.name} ehlo result={verb} {cause}{told}"]


def test_the_status_is_a_general_one_unless_given() -> None:
    with Conversation(General, "--on-error", "tempfail") as smtpd:
        reply = smtpd.connect().greeting.reply
        assert reply == "421 4.3.0 Temporary failure, please try again later"


@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
def test_what_was_done_to_the_header_is_undone(on_error: str) -> None:
    with Conversation(Content, "--on-error", on_error) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        done = client.message()
        assert "X-Half" not in done.headers
        assert done.refused is (on_error == "tempfail")
        assert done.headers.get("X-Spam") == ("Yes" if on_error == "junk" else None)


class Ahead(Filter):
    """Can't find out ahead of need."""

    async def refresh(self) -> None:
        raise UnavailableError("no list")

    def link_identify(self, _session: Session) -> None:
        raise UnavailableError("no answer")

    def mail_from(self, _session: Session, _address: str) -> Proceed:
        return PROCEED


def test_of_an_event_the_cause_is_logged() -> None:
    with Conversation(Ahead) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        assert client.mail_from("bob@example.net").verb == "proceed"
        assert smtpd.log == [
            f'{Ahead.name} refresh cause="no list"',
            f'{client.id} {Ahead.name} link_identify cause="no answer"',
        ]
