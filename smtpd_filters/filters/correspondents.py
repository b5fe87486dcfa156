"""filter-correspondents: learn to whom our users write, and recognise mail from them.

Users are authenticated clients. What they send is learnt; the mail of other clients is looked up
and gets points in a chain with a score. filter-greylist can ask the same store
(`checks.correspondents`).

Invariants
----------
*Never waits to learn*: what a user sends is learnt after the command has been answered.
*Refuses nobody*: the filter only gives points and writes a field.
*No bulk*: a message to many recipients is no correspondence, and teaches nothing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from smtpd_filters.checks.correspondents import NAME, SCOPE, USER, Correspondents
from smtpd_filters.errors import UnavailableError
from smtpd_filters.filter import Filter, Registration
from smtpd_filters.main import run
from smtpd_filters.own_field import OwnField
from smtpd_filters.protocol.decisions import PROCEED, Points, Proceed
from smtpd_filters.settings import INTEGER, NUMBER, SECONDS, SWITCH, Settings, option
from smtpd_filters.stores import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.message import Headers
    from smtpd_filters.session import Session

FIELD = OwnField("X-Correspondent")
DAY = 86400.0


class CorrespondentsFilter(Filter):
    """Recognise mail from those to whom our users have written."""

    name = NAME
    early = False  # it learns what it is asked
    own_fields = (FIELD,)
    points = (-100, 0)  # `setup` returns closer bounds

    class Options(Settings):
        """What is remembered, and what it is worth."""

        points = option(
            NUMBER(low=-100, high=0),
            default=-3.0,
            help="The points of a message from a correspondent, in a chain with a score.",
        )
        scope = option(
            SCOPE,
            default=USER,
            help="Whose correspondents count: those of the recipient (user), or of any user of "
            "this server (server).",
        )
        lifetime = option(
            SECONDS(low=60, high=3650 * DAY),
            default=90 * DAY,
            help="How long a correspondent is remembered after the last message to it.",
        )
        max_recipients = option(
            INTEGER(low=1, high=1000),
            default=25,
            help="Messages of users to more recipients teach nothing.",
        )
        header = option(
            SWITCH,
            default=False,
            help=f'Add a field "{FIELD}: known" to messages from correspondents of all their '
            "recipients, and remove such fields from incoming messages.",
        )

    settings: Options
    store = Store.setting()
    #: Messages that are being learnt at a time; further ones are not learnt.
    max_learning = 200

    _known: Correspondents
    _learning: set[asyncio.Task[Any]]

    def setup(self) -> Registration:
        """Prepare, and return what to register."""
        settings = self.settings
        self._learning = set()
        self._known = Correspondents(self.store, settings.scope)
        handlers = {"rcpt_to", "data"}
        if settings.header:
            handlers.add("headers")
        return Registration(
            handlers,
            reports={"link-auth", "tx-begin"},
            junk=False,
            points=(settings.points, 0),
        )

    async def rcpt_to(self, session: Session, address: str) -> Proceed | Points:
        """Look up the sender among the recipient's correspondents."""
        tx = session.tx
        if session.username or session.local or tx is None or not tx.sender:
            return PROCEED
        found = False
        try:
            found = await self._known.knows(address, tx.sender)
        finally:
            tx.scratch[self] = found and tx.scratch.get(self, True)
        if not found:
            return PROCEED
        return Points(self.settings.points).because(f"{tx.sender} is a correspondent of {address}")

    def data(self, session: Session) -> Proceed:
        """Learn the recipients of a user's message."""
        tx = session.tx
        if session.username and tx is not None and tx.sender:
            if len(tx.recipients) > self.settings.max_recipients:
                return PROCEED.because(f"not learnt: {len(tx.recipients)} recipients")
            self._learn(tx.sender, list(tx.recipients))
        return PROCEED

    def headers(self, session: Session, headers: Headers) -> Proceed:
        """State that the sender is known."""
        FIELD.remove(headers)
        if session.tx is not None and session.tx.scratch.get(self):
            FIELD.prepend(headers, "known")
        return PROCEED

    def _learn(self, sender: str, recipients: Sequence[str]) -> None:
        if len(self._learning) >= self.max_learning:
            self.log.limited("learning", "store", error="too many messages are pending")
            return
        task = asyncio.get_running_loop().create_task(self._learnt(sender, recipients))
        self._learning.add(task)
        task.add_done_callback(self._learning.discard)

    async def _learnt(self, sender: str, recipients: Sequence[str]) -> None:
        try:
            await self._known.learn(sender, recipients, self.settings.lifetime)
        except UnavailableError as error:
            self.log.limited(f"store {error}", "store", error=str(error))

    async def close(self) -> None:
        """Finish what is being learnt."""
        if self._learning:
            await asyncio.wait(self._learning)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable filter-correspondents."""
    return run(CorrespondentsFilter, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
