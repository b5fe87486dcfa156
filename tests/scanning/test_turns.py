"""A scanner that a chain calls before its turn edits nothing until then."""

from __future__ import annotations

import asyncio

import pytest

from smtpd_filters import PROCEED, Filter, Message, Proceed, Session
from smtpd_filters.checks.exemptions import Exempt
from smtpd_filters.scanning.intake import Content, Intake
from smtpd_filters.testing import Conversation

#: An address that smtpd completes, and a blank line for programs that take a CR for a line end.
MESSAGE = b"From: bob\r\nX-Note: one\r\rtwo\r\n\r\nhello\r\n"
PREPARED = b"From: bob@mx.example.org\nX-Note: one  two\n\nhello\n"


class First(Filter):
    """Scans as long as the second one does, and edits nothing."""

    scans = True

    def __init__(self, *, dry_run: bool) -> None:
        super().__init__()
        self.dry_run = dry_run
        self.began, self.go_on = asyncio.Event(), asyncio.Event()
        self.edited = False

    async def message(self, session: Session, message: Message) -> Proceed:
        before = message.headers.text()
        await self.began.wait()
        self.edited = message.headers.text() != before or bool(session.edited and session.edited())
        return PROCEED


class Second(Filter):
    """Scans; `sent` is what a server would get each time."""

    scans = True

    def __init__(self, began: asyncio.Event, *, headers: bool, max_size: int) -> None:
        super().__init__()
        self._began, self._headers = began, headers
        self._intake = Intake(Exempt(), max_size=max_size, larger="skip", own=())
        self.sent: list[bytes] = []

    async def message(self, session: Session, message: Message) -> Proceed:
        asyncio.get_running_loop().call_soon(self._began.set)
        while True:
            content = await self._intake.content(self, session, message)
            if not isinstance(content, Content):
                return PROCEED
            self.sent.append(b"".join(content.chunks()))
            if await content.turn(headers=self._headers):
                return PROCEED


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize(("max_size", "sent"), [(1000, [PREPARED]), (10, [])])
def test_it_edits_in_its_turn(
    *, dry_run: bool, headers: bool, max_size: int, sent: list[bytes]
) -> None:
    first = First(dry_run=dry_run)
    second = Second(first.began, headers=headers, max_size=max_size)
    with Conversation([first, second]) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("bob@example.net")
        client.rcpt_to("anna@example.org")
        delivery = client.message(MESSAGE)
    assert b"\n".join([*delivery.content, b""]).endswith(PREPARED)
    assert [each[-len(PREPARED) :] for each in second.sent] == sent
    assert not first.edited
    assert not [line for line in smtpd.log if " first message " in line]
