"""Filters of the end-to-end tests, each as an author would write it: policies.py NAME FLAG..."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from smtpd_filters.filter import Filter
from smtpd_filters.main import run
from smtpd_filters.message import Headers, Message
from smtpd_filters.protocol.decisions import (
    JUNK,
    PROCEED,
    Answer,
    FinalAnswer,
    ParameterAnswer,
    Proceed,
    Reject,
    Rewrite,
)
from smtpd_filters.sandbox import Needs
from smtpd_filters.session import Session
from smtpd_filters.settings import PATH, Settings, option


class Seen(Filter):
    """Write down what is known of the session."""

    class Options(Settings):
        """Where."""

        into = option(PATH, required=True, help="The file.")

    settings: Options

    def needs(self, needs: Needs) -> None:
        needs.to_write(str(Path(self.settings.into).parent))

    def _note(self, text: str) -> Proceed:
        with Path(self.settings.into).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
        return PROCEED

    def mail_from(self, session: Session, _address: str) -> ParameterAnswer:
        return self._note(
            f"mail-from tls={session.tls} username={session.username} "
            f"{session.method} {session.identity}"
        )

    def commit(self, session: Session) -> Proceed:
        tx = session.tx
        assert tx is not None
        return self._note(f"commit sender={tx.sender} recipients={tx.recipients}")


class Rewriting(Seen):
    """Take other addresses, and write down what the session says of them."""

    def mail_from(self, _session: Session, address: str) -> ParameterAnswer:
        if address == "old@good.example":
            return Rewrite("new@good.example")
        return Rewrite("") if address == "nobody@good.example" else PROCEED

    def rcpt_to(self, _session: Session, address: str) -> ParameterAnswer:
        return Rewrite("bob@local.example") if address.startswith("robert@") else PROCEED

    def helo(self, _session: Session, identity: str) -> ParameterAnswer:
        return Rewrite("known.example") if identity == "unknown.example" else PROCEED

    ehlo = helo


class Adding(Filter):
    """Add a field at the top, and one at the bottom."""

    def headers(self, _session: Session, headers: Headers) -> Proceed:
        headers.prepend("X-Top", "first")
        headers.append("X-Bottom", "last")
        return PROCEED


class AddingLater(Filter):
    """Do so when something has been awaited."""

    name = "adding-later"

    async def headers(self, _session: Session, headers: Headers) -> Proceed:
        await asyncio.sleep(0.01)
        headers.prepend("X-Top", "first")
        headers.append("X-Bottom", "last")
        return PROCEED


class Holding(Filter):
    """Hold each message until it has been seen as a whole, and pass it."""

    def message(self, _session: Session, _message: Message) -> Proceed:
        return PROCEED


class Closed(Filter):
    """Refuse every client."""

    def connect(self, _session: Session) -> Answer:
        return Reject("554 5.7.1 Closed on Saturdays")


class Marking(Filter):
    """Mark what says that it is junk."""

    def headers(self, _session: Session, headers: Headers) -> Answer:
        return JUNK if "X-Bad" in headers else PROCEED


class Scanning(Filter):
    """Refuse messages with a bad word in the body."""

    def message(self, _session: Session, message: Message) -> FinalAnswer:
        if any(b"EICAR" in chunk for chunk in message.body()):
            return Reject("554 5.7.1 Message has a virus")
        return PROCEED


class Slow(Filter):
    """Think as long as the address says: after=SECONDS@good.example."""

    async def mail_from(self, _session: Session, address: str) -> Answer:
        seconds = address.partition("@")[0].partition("=")[2]
        if seconds:
            await asyncio.sleep(float(seconds))
            return Reject(f"550 5.7.1 After {seconds} s")
        return PROCEED


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    kinds: dict[str, type[Filter]] = {
        kind.name: kind for kind in (*Filter.__subclasses__(), *Seen.__subclasses__())
    }
    sys.exit(run(kinds[name], argv=arguments))
