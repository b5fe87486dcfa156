"""All milters about one session: asked in order, at each phase and about each message.

The first refusal ends it, and each milter fails by itself: `--on-error` decides for it, and the
others are asked in any case.
"""

from __future__ import annotations

from smtpd_filters.errors import UnavailableError
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Disconnect, Junk, Proceed, Reject
from smtpd_filters.protocol.decisions import reply as smtp_reply
from smtpd_filters.runtime.log import outcome
from smtpd_filters.scanning.outcomes import ENVELOPE

from .content import Draft
from .dialogue import Dialogue
from .facts import Facts
from .gate import FailedError
from .links import now
from .outcomes import DISCARDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.message import Message
    from smtpd_filters.protocol.decisions import Answer, ContentAnswer
    from smtpd_filters.session import Session

    from .dialogue import Milter as Configured
    from .policy import Milter

#: The part of the time that is left until `--deadline` which a milter may take, so that its failure
#: is logged as its own, and those behind it are asked.
SHARE = 0.9
#: The decisions about a message that a milter quarantines, by `--quarantine`.
HELD = {
    "tempfail": Reject(smtp_reply(451, "4.7.1", "Message held for review, please try again later")),
    "reject": Reject(smtp_reply(550, "5.7.1", "Message rejected")),
}


class Dialogues:
    """The dialogues with all milters about one session; `host` is the name of this machine."""

    __slots__ = ("_dialogues", "_policy", "_session", "facts")

    def __init__(
        self, policy: Milter, milters: Sequence[Configured], session: Session, *, host: str
    ) -> None:
        self._policy = policy
        self._session = session
        self.facts = facts = Facts(
            session,
            host=host,
            daemon=policy.settings.daemon_name,
            version=policy.smtpd.get("smtpd-version", ""),
        )
        self._dialogues = [Dialogue(milter, facts) for milter in milters]

    async def connect(self) -> Answer:
        """Ask about the client."""
        return await self._bring(v.CONNECT)

    async def helo(self, identity: str) -> Answer:
        """Ask about the greeting."""
        return await self._bring(v.HELO, identity=identity)

    async def mail_from(self) -> Answer:
        """Ask about the sender."""
        return await self._bring(v.MAIL)

    async def rcpt_to(self, recipient: str) -> Answer:
        """Ask about a recipient."""
        return await self._bring(v.RCPT, recipient)

    async def data(self) -> Answer:
        """Ask at DATA."""
        return await self._bring(v.DATA)

    async def message(self, message: Message) -> ContentAnswer:
        """Pass a message through the milters."""
        draft = Draft(message, self._session.server_name)
        decision = await self._bring(v.END_OF_BODY, draft=draft)
        if isinstance(decision, Proceed | Junk):
            return await self._finished(draft, decision)
        return decision

    async def commit(self) -> Proceed | Reject | Disconnect:
        """Ask milters that want nothing of a message."""
        decision = await self._bring(v.END_OF_BODY)
        return PROCEED if isinstance(decision, Junk) else decision

    def end(self) -> None:
        """Close the connections: the session has ended."""
        for dialogue in self._dialogues:
            if dialogue.link is not None:
                dialogue.link.end()

    async def _bring(
        self,
        event: bytes,
        recipient: str | None = None,
        draft: Draft | None = None,
        *,
        identity: str | None = None,
    ) -> Proceed | Junk | Reject | Disconnect:
        """Bring all milters to a stage; return the first refusal."""
        self.facts.update(identity)
        result: Proceed | Junk = PROCEED
        deadline = now() + self._policy.deadline
        for dialogue in self._dialogues:
            serial = self.facts.serial
            if serial and dialogue.failed == serial:
                continue  # it has been answered for in this transaction
            try:
                until = now() + SHARE * (deadline - now())
                refused = await dialogue.at(event, recipient, draft, until=until)
            except FailedError as error:
                if self._failed(dialogue, error, draft) is JUNK:
                    result = JUNK
            else:
                if refused is not None:
                    return refused.because(dialogue.milter.label)
        return result

    def _failed(
        self, dialogue: Dialogue, error: FailedError, draft: Draft | None
    ) -> Proceed | Junk:
        """Return the decision of `--on-error`. Raises UnavailableError to refuse for now."""
        policy = self._policy
        cause = f"{dialogue.milter.label}: {error}"
        if policy.on_error == "tempfail":
            raise UnavailableError(cause) from None
        dialogue.failed = self.facts.serial
        decision = JUNK if policy.on_error == "junk" else PROCEED
        phase = "message" if draft is not None else "milter"
        told = outcome(decision, dry=policy.dry_run)
        policy.log.failure(cause, phase, self._session.id, told, cause=cause)
        return decision

    async def _finished(self, draft: Draft, decision: Proceed | Junk) -> Proceed | Junk | Reject:
        """Apply the edits of all milters; return the decision about the message."""
        settings = self._policy.settings
        notes = "; ".join(draft.notes)
        held = draft.quarantine is not None
        if held and (refused := HELD.get(settings.quarantine)):
            return refused.because(f"quarantined: {draft.quarantine}")
        if draft.envelope and settings.envelope_changes == "tempfail":
            return ENVELOPE.because(notes)
        tx = self._session.tx
        if (
            settings.discard == "reject"
            and tx is not None
            and tx.recipients
            and draft.leaves_none(tx.recipients)
        ):
            return Reject(DISCARDED).because("all recipients deleted")
        if held:
            draft.hold()
            notes = "; ".join([f"quarantined: {draft.quarantine}", *draft.notes])
            if settings.quarantine == "junk":
                decision = JUNK
        await draft.store()
        return decision.because(notes) if notes else decision
