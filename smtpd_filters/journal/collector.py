"""The memory of a deciding process for the journal: a story for each session.

Invariants
----------
*Cheap*: a verdict to proceed costs a look-up and a few additions; everything is encoded once, when
the transaction or the session ends.
*Bounded*: of a session at most `MAX_VERDICTS`, `MAX_RECIPIENTS`, `MAX_ANSWERS`, `MAX_MARKS` and the
reasons of `MAX_EXEMPTIONS` are kept. Further verdicts, recipients and replies are counted.
*Never raises*: a failure drops the story, and is logged.
*No credentials*: the argument of `auth` is never kept, nor the rewritten one.
"""

from __future__ import annotations

from time import monotonic, time

from smtpd_filters.protocol.vis import unvis
from smtpd_filters.runtime.log import EXEMPT_FOR, exemption, fold_traceback

from . import process_state
from .outbox import SPACING, Outbox
from .passed import rows_of
from .rows import CONFIDENTIAL, MAX_ADDRESS, MAX_TEXT, clip, decision_row
from .wire import (
    ARGUMENT,
    AT,
    DEFAULTS,
    FLAGS,
    PHASE,
    REASON,
    SETTING,
    VERB,
    VERSION,
    encode,
    trimmed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.runtime.log import Log

    from .passed import Group, Source
    from .sender import Sender
    from .wire import Row

    class Keeper(Protocol):
        """A session, which keeps its story."""

        story: Story | None

        @property
        def id(self) -> Any:
            """Smtpd's id, text or bytes."""

    class HeaderBlock(Protocol):
        """The header of a message."""

        def get(self, name: str) -> str | None:
            """Return the first field of this name."""


MAX_VERDICTS = 64
MAX_RECIPIENTS = 50
MAX_ANSWERS = 16
#: Exemptions whose reasons are kept: enough for 50 filters, each at five phases.
MAX_EXEMPTIONS = 256
#: Junk marks of a session that are kept: more than the phases of a chain's filters make.
MAX_MARKS = 16
#: Characters of a name and of smtpd's ids; those of an address and of a text are in `rows`.
MAX_NAME, MAX_ID = 255, 16
_RESULTS = {b"ok": 0, b"tempfail": 1, b"permfail": 2}
_REFUSALS = frozenset({"reject", "disconnect"})
_NEVER = float("inf")
RCPT_TO = "rcpt-to"
#: Phases at which smtpd takes junk for all messages of the session; `noop` between messages only.
_OF_SESSIONS = frozenset({"connect", "helo", "ehlo", "starttls", "auth", "noop"})


class Story:
    """What is known of a session and its current transaction."""

    __slots__ = (
        "answers", "at", "client", "confidential", "end", "greeting", "left_out", "marks",
        "message_id", "msgid", "passed", "recipients", "refused", "sender", "sent", "size", "start",
        "subject", "tls", "unnamed", "users", "verdicts",
    )  # fmt: skip

    def __init__(self) -> None:
        self.client: list[str] = []
        self.greeting: list[str] = []
        self.tls = ""
        #: The authenticated user, and that of a failed authentication.
        self.users: list[str] = []
        #: Verdicts that mark every message of the session as junk.
        self.marks: list[Row] = []
        #: Whether a part was sent.
        self.sent = False
        self.begin()

    def begin(self) -> None:
        """Forget the transaction."""
        #: The start, in seconds since 1970 and of the monotonic clock.
        self.at, self.start = time(), monotonic()
        self.msgid = self.end = self.sender = self.message_id = self.subject = ""
        self.size = 0
        self.recipients: list[list[Any]] = []
        self.answers: list[str] = []
        #: By source: how often it let pass, the seconds in total, the longest, and when at first.
        self.passed: dict[Any, list[float]] = {}
        self.verdicts: list[Row] = []
        #: Verdicts at `rcpt-to` whose recipient smtpd has not reported yet.
        self.unnamed: list[Row] = []
        #: Whether something was refused; and whether the reply to that may repeat a credential.
        self.refused = self.confidential = False
        self.left_out = 0


class Collector:
    """The stories of a process.

    `who` is its name; `log` gets failures. `spacing` is the seconds between two datagrams of
    stories that are not full.
    """

    #: The reports that it needs.
    reports = (
        "link-connect", "link-disconnect", "link-identify", "link-tls", "link-auth", "tx-mail",
        "tx-rcpt", "tx-reset", "tx-commit", "protocol-server",
    )  # fmt: skip

    def __init__(self, sender: Sender, who: str, log: Log, *, spacing: float = SPACING) -> None:
        self.sender = sender
        self._outbox = Outbox(sender, spacing=spacing)
        self._who, self._log = clip(who, MAX_NAME), log
        #: Of a story without a verdict nothing is sent: another process tells it.
        self.sparing = False
        self._state = process_state.ProcessState(sender, self._who)
        #: When the state is sent, by the monotonic clock; and the ends that the last one had.
        self._next_state, self._ends = 0.0, 0
        #: By report: what to call with the session and the report's fields.
        self.watches: dict[str, Callable[[Any, tuple[bytes, ...]], None]] = {
            name: self._guarded(handle)
            for name, handle in {
                "link-connect": self._connected,
                "link-identify": self._identified,
                "link-tls": self._encrypted,
                "link-auth": self._authenticated,
                "tx-mail": self._sender,
                "tx-rcpt": self._recipient,
                "tx-commit": self._committed,
                "tx-reset": self._reset,
                "protocol-server": self._answered,
            }.items()
        }

    # -- verdicts ------------------------------------------------------------------------

    def passed(
        self,
        session: Keeper,
        source: Source | Group | tuple[Source, str],
        started: float,
        ended: float = 0.0,
    ) -> None:
        """Note that a handler let the command pass, from `started` to `ended` or now.

        If the client is exempt, `source` is the handler and why.
        """
        try:
            story = session.story or _story_of(session)
            took = (ended or monotonic()) - started
            sums = story.passed.get(source)
            if sums is None:
                story.passed[source] = [1, took, took, started - story.start]
            else:
                sums[0] += 1
                sums[1] += took
                sums[2] = max(sums[2], took)
        except BaseException as error:  # noqa: BLE001  # *Never raises*
            self._failed(session, error)

    def decided(  # noqa: PLR0913  # keyword-only: rare cases
        self,
        session: Keeper,
        source: Source,
        decision: Decision,
        took: float,
        *,
        failure: str = "",
        edited: bool = False,
    ) -> None:
        """Note a decision, which took so many seconds.

        `failure` is why the filter has none; `edited` is whether it has changed the message.
        """
        try:
            passes = decision.verb == "proceed" and not (failure or edited)
            if passes and (why := exemption(decision)):
                few = len(_story_of(session).passed) < MAX_EXEMPTIONS
                exempt = (source, clip(why)) if few else source
                self.passed(session, exempt, monotonic() - took)
                return
            row = decision_row(source, decision, took, failure, edited=edited)
            self._keep(session, row)
        except BaseException as error:  # noqa: BLE001  # *Never raises*
            self._failed(session, error)

    def noted(  # noqa: PLR0913  # the fields of a verdict
        self,
        session: Keeper,
        name: str,
        phase: str,
        verb: str,
        *,
        reason: str = "",
        reply: str = "",
        points: int = 0,
        setting: str = "",
        flags: str = "",
        took: float = 0.0,
    ) -> None:
        """Note a verdict that isn't a handler's, such as the score's."""
        try:
            texts = [clip(reason), clip(reply)]
            row = [name, phase, verb, 0, int(took * 1e6), 1, 0, *texts, "", points, flags, setting]
            self._keep(session, row)
        except BaseException as error:  # noqa: BLE001  # *Never raises*
            self._failed(session, error)

    @staticmethod
    def _keep(session: Keeper, row: Row) -> None:
        story = _story_of(session)
        if row[VERB] == "proceed" and row[REASON].startswith(EXEMPT_FOR):
            # Of a filter's author, or of a client: exemptions have been noted as such.
            row[REASON] = f" {row[REASON]}"
        acts = "d" not in row[FLAGS]
        if acts and row[VERB] in _REFUSALS:
            story.refused = True
            story.confidential = row[PHASE] == CONFIDENTIAL
        if acts and row[VERB] == "junk" and row[PHASE] in _OF_SESSIONS and not story.msgid:
            del story.marks[MAX_MARKS - 1 :]
            story.marks.append(row)
        if len(story.verdicts) >= MAX_VERDICTS:
            story.left_out += 1
            return
        row[AT] = max(0, int((monotonic() - story.start) * 1000))
        if row[PHASE] == RCPT_TO:
            story.unnamed.append(row)
        elif row[PHASE] == "mail-from":
            row[ARGUMENT] = story.sender
        story.verdicts.append(row)

    # -- what smtpd reports --------------------------------------------------------------

    def _guarded(
        self, handle: Callable[[Story, tuple[bytes, ...]], object]
    ) -> Callable[[Any, tuple[bytes, ...]], None]:
        def watch(session: Keeper, values: tuple[bytes, ...]) -> None:
            try:
                story = _story_of(session)
                if handle(story, values):
                    self._send(session, story, "tx")
            except BaseException as error:  # noqa: BLE001  # *Never raises*
                self._failed(session, error)

        return watch

    @staticmethod
    def _connected(story: Story, values: tuple[bytes, ...]) -> None:
        rdns, fcrdns, src, dest = values
        story.client = [_text(each, MAX_NAME) for each in (src, rdns, fcrdns, dest)]

    @staticmethod
    def _identified(story: Story, values: tuple[bytes, ...]) -> None:
        story.greeting = [_text(each, MAX_NAME) for each in values]

    @staticmethod
    def _encrypted(story: Story, values: tuple[bytes, ...]) -> None:
        story.tls = _text(values[0], MAX_NAME)

    @staticmethod
    def _authenticated(story: Story, values: tuple[bytes, ...]) -> None:
        result, username = values
        user = _text(unvis(username), MAX_NAME)
        story.users = [user, ""] if result == b"pass" else ["", user]

    def mail_from(self, session: Keeper, argument: bytes) -> None:
        """Note the sender that a client names, before the filters are asked.

        What was refused before belongs to an earlier attempt, and is sent.
        """
        try:
            story = _story_of(session)
            if story.msgid:  # a MAIL within a transaction, which smtpd refuses
                return
            if story.refused:
                self._send(session, story, "session")
            elif story.sent and not (story.passed or story.verdicts):
                story.begin()  # the time since the message before is none of this one's
            story.sender = _text(argument, MAX_ADDRESS)
        except BaseException as error:  # noqa: BLE001  # *Never raises*
            self._failed(session, error)

    @staticmethod
    def _sender(story: Story, values: tuple[bytes, ...]) -> None:
        accepted = values[1] == b"ok"
        if accepted or not story.msgid:  # a MAIL within a transaction is refused, and reported
            story.sender = _text(values[2], MAX_ADDRESS)
        if accepted:
            story.msgid = _text(values[0], MAX_ID)
        else:
            story.refused = True

    @staticmethod
    def _recipient(story: Story, values: tuple[bytes, ...]) -> None:
        address = _text(values[2], MAX_ADDRESS)
        for row in story.unnamed:
            row[ARGUMENT] = address
        story.unnamed.clear()
        if len(story.recipients) < MAX_RECIPIENTS:
            story.recipients.append([address, _RESULTS.get(values[1], 2)])
        else:
            story.left_out += 1

    @staticmethod
    def _committed(story: Story, values: tuple[bytes, ...]) -> None:
        story.end = "commit"
        story.size = int(values[1]) if values[1].isdigit() and len(values[1]) < 16 else 0

    @staticmethod
    def _reset(story: Story, _values: tuple[bytes, ...]) -> bool:
        # It comes after `tx-commit` as well as after `tx-rollback`.
        story.end = story.end or "rollback"
        return story.msgid != ""

    @staticmethod
    def _answered(story: Story, values: tuple[bytes, ...]) -> None:
        # The others are not given to us (`FilterConnection.skips_replies`).
        if values[0][:1] in (b"4", b"5"):
            story.refused = True
            if len(story.answers) >= MAX_ANSWERS:
                del story.answers[-1]  # the last one says how it ended
                story.left_out += 1
            answer = _text(values[0], MAX_TEXT)
            story.answers.append(answer[:3] if story.confidential else answer)

    def message(self, session: Keeper, headers: HeaderBlock) -> None:
        """Note what a message says of itself."""
        try:
            story = session.story
            if story is not None:
                story.message_id = clip((headers.get("Message-ID") or "").strip(), MAX_NAME)
                story.subject = clip((headers.get("Subject") or "").strip())
        except BaseException as error:  # noqa: BLE001  # *Never raises*
            self._failed(session, error)

    def closed(self, session: Keeper) -> None:
        """Send what is left of a session that has ended."""
        try:
            story = session.story
            if story is None:
                return
            if story.msgid:
                story.end = story.end or "rollback"
                self._send(session, story, "tx")
            elif story.verdicts or story.refused or not story.sent:
                self._send(session, story, "session")
            session.story = None
        except BaseException as error:  # noqa: BLE001  # *Never raises*
            self._failed(session, error)

    # -- the process -----------------------------------------------------------------------

    def beat(self, sessions: int, ends: int = 0) -> float:
        """Send stories and the state of the process that are due.

        Return the seconds until more is due. `sessions` are open; `ends` is how often a supervised
        program has ended, each of which is sent at once.
        """
        now = monotonic()
        if now >= self._outbox.due:
            self.flush()
        if now >= self._next_state or ends != self._ends:
            self._next_state, self._ends = now + process_state.INTERVAL, ends
            try:
                self._state.send(sessions, ends)
            except BaseException as error:  # noqa: BLE001  # *Never raises*
                self._note_failure(error)
        return min(self._next_state, self._outbox.due) - now

    @property
    def holds(self) -> bool:
        """Whether stories wait for `beat`."""
        return self._outbox.due < _NEVER

    def flush(self) -> None:
        """Send all stories that wait."""
        try:
            self._outbox.flush()
        except BaseException as error:  # noqa: BLE001  # *Never raises*
            self._note_failure(error)

    # -- sending -------------------------------------------------------------------------

    def _send(self, session: Keeper, story: Story, kind: str) -> None:
        """Send a story, now or soon, and begin the next one of the session."""
        marks = _earlier(story) if kind == "tx" else []
        if self.sparing and not (story.verdicts or marks):
            story.begin()
            story.sent = True
            return
        rows = rows_of(story.passed) + marks
        rows += [trimmed(row) for row in story.verdicts]
        id_, losses = session.id, self._outbox.losses
        head: dict[str, Any] = {
            "v": VERSION,
            "k": kind,
            "p": self._who,
            "s": (id_.decode("latin-1") if isinstance(id_, bytes) else id_)[:MAX_ID],
            "m": story.msgid,
            "t": int(story.at * 1000),
            "d": int((monotonic() - story.start) * 1000),
            "e": story.end,
            "c": story.client,
        }
        facts = (
            ("h", story.greeting),
            ("l", story.tls),
            ("u", story.users),
            ("f", story.sender),
            ("r", story.recipients),
            ("z", story.size),
            ("i", story.message_id),
            ("j", story.subject),
            ("a", story.answers),
            ("x", losses),
            ("y", story.left_out),
        )
        head |= {key: value for key, value in facts if value}
        self._outbox.add(encode(head, rows), losses)
        story.begin()
        story.sent = True

    def _failed(self, session: Keeper, error: BaseException) -> None:
        try:
            session.story = None
        except BaseException:  # noqa: BLE001, S110  # *Never raises*
            pass
        self._note_failure(error)

    def _note_failure(self, error: BaseException) -> None:
        try:
            self._log.limited("journal bug", "journal", "bug", error=fold_traceback(error))
        except BaseException:  # noqa: BLE001, S110  # *Never raises*
            pass


def _story_of(session: Keeper) -> Story:
    """Return the story of a session; begin it if there is none."""
    story = session.story
    if story is None:
        story = session.story = Story()
    return story


def _earlier(story: Story) -> list[Row]:
    """Return rows for the marks of the session that were made before the transaction."""
    made = [each for each in story.marks if not any(each is own for own in story.verdicts)]
    times = DEFAULTS[AT:REASON]
    return [[*row[:AT], *times, *row[REASON:FLAGS], f"{row[FLAGS]}m", row[SETTING]] for row in made]


def _text(value: bytes, limit: int) -> str:
    return clip(value.decode("utf-8", "backslashreplace"), limit)
