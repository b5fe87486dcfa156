"""Stories as the journal stores and returns them: plain records, without I/O.

A story is the history of one transaction, or of a session as far as it belongs to none.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smtpd_filters.runtime.log import EXEMPT_FOR

from .wire import AT, FLAGS, PHASE, REPLY, VERB, alone, packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The results of a message, in the order of their numbers in the database: accepted; accepted and
#: marked as junk; refused temporarily; refused permanently; abandoned by the client; a session
#: without a message.
ACCEPTED, JUNK, DEFERRED, REFUSED, ABANDONED, NONE = range(6)
OUTCOMES = ("accepted", "junk", "deferred", "refused", "abandoned", "none")
#: The results of a recipient.
RESULTS = ("accepted", "deferred", "refused")
#: Who decided if no filter did.
SMTPD = "smtpd"
#: Lists of a part with a number of texts that is always the same.
_LISTS = {"c": 4, "h": 2, "u": 2}
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode
_EMPTY: dict[str, Any] = {
    **dict.fromkeys("melfij", ""), **dict.fromkeys("tdzxy", 0), **dict.fromkeys("rap", ()),
    **{key: ("",) * length for key, length in _LISTS.items()},
}  # fmt: skip
#: Replies to wrong commands, which say nothing of the message (RFC 5321 section 4.2.3), unless
#: their enhanced status is another one than those of wrong commands (RFC 3463 section 3.6), such as
#: in smtpd's "500 5.4.6 Routing loop detected". Its "500 5.0.0 Line too long" can be either.
_SYNTAX = ("500", "501", "502", "503", "504", "555")
_STATUS = re.compile(r"... [45]\.\d{1,3}\.\d{1,3} ")
_OF_COMMANDS = re.compile(r"... 5\.5\.")
_OF_SESSIONS = re.compile(r"... 5\.[05]\.")
_AUTH = ("530", "535", "538")
_REFUSALS = ("reject", "disconnect")
#: Characters of a reply that are compared.
_COMPARED = 30
_ORDER = {
    name: at
    for at, name in enumerate((
        "connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data", "headers",
        "message", "commit", "rset", "noop", "quit",
    ))
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one filter decided at one phase; several verdicts to proceed are one."""

    filter: str
    phase: str
    #: proceed, junk, reject, disconnect, rewrite, edit or points.
    verb: str
    #: Milliseconds since the start of the story.
    at: int
    #: Microseconds, of all together; how many verdicts; and the longest of several.
    took: int
    count: int
    longest: int
    reason: str
    #: The reply of a refusal; or the new parameter of a rewrite.
    reply: str
    #: The address that it is about, at `mail-from` and `rcpt-to`.
    argument: str
    #: Thousandths of a point.
    points: int
    #: Letters: see `wire.ROW`.
    flags: str
    #: The setting that decided, if it is known: a flag, or a threshold of the score.
    setting: str

    @property
    def dry(self) -> bool:
        """Whether it was only logged (`--dry-run`)."""
        return "d" in self.flags

    @property
    def failed(self) -> bool:
        """Whether the filter failed, and `--on-error` decided."""
        return "f" in self.flags

    @property
    def edits(self) -> bool:
        """Whether the filter changed the message beside its verdict."""
        return "e" in self.flags

    @property
    def earlier(self) -> bool:
        """Whether it is a mark of the whole session that was made before this message."""
        return "m" in self.flags

    @property
    def exempt(self) -> str:
        """Why the filter exempts the client: a word of --exempt, an entry of a table, or ""."""
        if self.verb != "proceed" or not self.reason.startswith(EXEMPT_FOR):
            return ""
        return self.reason.removeprefix(EXEMPT_FOR)

    @property
    def refuses(self) -> bool:
        """Whether it refused the command."""
        return self.verb in _REFUSALS and not self.dry

    @property
    def marks(self) -> bool:
        """Whether it marked the message as junk."""
        return self.verb == "junk" and not self.dry


@dataclass(frozen=True, slots=True)
class Story:
    """The history of a transaction or a session. Texts are from outside: escape them."""

    #: The journal's own id.
    id: str
    #: "tx" or "session".
    kind: str
    #: The start in seconds since 1970, and the duration in seconds.
    time: float
    duration: float
    #: smtpd's ids; `msgid` is "" for a session.
    session: str
    msgid: str
    #: One of `OUTCOMES`.
    outcome: str
    #: The client's address ("" on smtpd's socket), port, reverse name and its check.
    client: str
    endpoint: str
    rdns: str
    fcrdns: str
    #: The server's endpoint.
    server: str
    #: HELO or EHLO, and the name.
    method: str
    identity: str
    tls: str
    user: str
    failed_user: str
    sender: str
    #: Addresses with one of `RESULTS`.
    recipients: tuple[tuple[str, str], ...]
    size: int
    message_id: str
    subject: str
    #: smtpd's replies with 4xx and 5xx.
    answers: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    #: The names of the processes that sent it.
    processes: tuple[str, ...]
    #: How many verdicts and recipients were left out.
    left_out: int
    #: The verdict that decided; None if smtpd or the client did.
    deciding: Verdict | None = field(default=None)

    @property
    def decided_by(self) -> str:
        """The filter that decided, "smtpd", or "" if nothing was refused or marked."""
        if self.deciding is not None:
            return self.deciding.filter
        return SMTPD if self.outcome in ("refused", "deferred") else ""

    @property
    def reply(self) -> str:
        """The reply that the client got, if something was refused."""
        if self.outcome not in ("refused", "deferred"):
            return ""
        if self.deciding is not None and self.deciding.reply:
            return self.deciding.reply
        number = OUTCOMES.index(self.outcome)
        return answer_of(self.answers, number, session=self.kind == "session")


def stored(part: dict[str, Any]) -> str:
    """Return a story as it is stored: without what is empty, and with its verdicts packed."""
    short = {key: value for key, value in part.items() if value and key not in ("v", "w", "x")}
    for key in _LISTS:
        if key in short and not any(short[key]):
            del short[key]
    return _encode({**short, "w": packed(part["w"])})


def loaded(data: str) -> dict[str, Any]:
    """Return a story that was stored. Raises ValueError, KeyError or TypeError if it is damaged."""
    short = json.loads(data)
    part = {**_EMPTY, **short, "w": unpacked(short["w"])}
    return {**part, **{key: list(part[key]) for key in ("r", "a", "p", *_LISTS)}}


def verdict(row: list[Any]) -> Verdict:
    """Return a verdict from its row."""
    return Verdict(*row)


def outcome(part: dict[str, Any]) -> tuple[int, list[Any] | None]:
    """Return the number of a story's outcome, and the row of the verdict that decided."""
    rows = part["w"]
    if part["e"] == "commit":
        marks = [row for row in rows if row[VERB] == "junk" and "d" not in row[FLAGS]]
        return (JUNK, marks[-1]) if marks else (ACCEPTED, None)
    answer = answer_of(part["a"], session=part["k"] == "session")
    results = {result for _, result in part["r"]}
    refusing = [row for row in rows if row[VERB] in _REFUSALS and "d" not in row[FLAGS]]
    if refusing and not (0 in results and _is_later(answer, refusing)):
        row = max(
            reversed(refusing),
            key=lambda each: (_ORDER.get(each[PHASE], 0), _is_reply(answer, each), each[AT]),
        )
        code = row[REPLY] or (part["a"] or ("5",))[-1]
        return DEFERRED if code[:1] == "4" else REFUSED, row
    if results and 0 not in results:
        return (REFUSED if 2 in results else DEFERRED), None
    if answer:
        return DEFERRED if answer[:1] == "4" else REFUSED, None
    return (ABANDONED if part["k"] == "tx" else NONE), None


def answer_of(answers: Sequence[str], outcome: int | None = None, *, session: bool) -> str:
    """Return smtpd's last reply that concerns the client or its mail, "" if there is none.

    If it was refused permanently, `outcome`, then the last one that says so.
    """
    found = [each for each in answers if _concerns(each, session=session)]
    if outcome == REFUSED:
        found = [each for each in found if each[:1] == "5"] or found
    return found[-1] if found else ""


def _concerns(answer: str, *, session: bool) -> bool:
    """Return whether a reply concerns the client or its mail, rather than one command."""
    if answer.startswith(_SYNTAX):
        of_commands = _OF_SESSIONS if session else _OF_COMMANDS
        return _STATUS.match(answer) is not None and not of_commands.match(answer)
    return session or not answer.startswith(_AUTH)


def _is_reply(answer: str, row: list[Any]) -> bool:
    """Return whether a reply is that of a verdict: long ones were shortened."""
    reply: str = row[REPLY]
    return reply != "" and answer[:_COMPARED] == reply[:_COMPARED]


def _is_later(answer: str, refusing: list[list[Any]]) -> bool:
    """Return whether smtpd gave a reply after filters had refused recipients, and nothing else."""
    return answer != "" and all(
        row[PHASE] == "rcpt-to" and row[REPLY] != "" and not _is_reply(answer, row)
        for row in refusing
    )


def is_rewritten_address(row: list[Any]) -> bool:
    """Return whether the reply in a verdict's row is an address in place of the client's."""
    return row[VERB] == "rewrite" and row[PHASE] in ("mail-from", "rcpt-to") and bool(row[REPLY])


def address_of(endpoint: str) -> str:
    """Return the IP address of smtpd's `ADDRESS:PORT`; "" for a unix socket."""
    if endpoint.startswith("unix:") or ":" not in endpoint:
        return ""
    return endpoint.rpartition(":")[0].strip("[]")


def story(id_: str, part: dict[str, Any]) -> Story:
    """Return a stored story as a record."""
    number, deciding = outcome(part)
    endpoint, rdns, fcrdns, server = part["c"]
    every = [each for row in part["w"] for each in alone(row)]
    rows = sorted(every, key=lambda row: (row[AT], _ORDER.get(row[PHASE], 0)))
    return Story(
        id=id_,
        kind=part["k"],
        time=part["t"] / 1000,
        duration=part["d"] / 1000,
        session=part["s"],
        msgid=part["m"],
        outcome=OUTCOMES[number],
        client=address_of(endpoint),
        endpoint=endpoint,
        rdns="" if rdns == "<unknown>" else rdns,
        fcrdns=fcrdns,
        server=server,
        method=part["h"][0],
        identity=part["h"][1],
        tls=part["l"],
        user=part["u"][0],
        failed_user=part["u"][1],
        sender=part["f"],
        recipients=tuple((address, RESULTS[result]) for address, result in part["r"]),
        size=part["z"],
        message_id=part["i"],
        subject=part["j"],
        answers=tuple(part["a"]),
        verdicts=tuple(verdict(row) for row in rows),
        processes=tuple(part["p"]),
        left_out=part["y"],
        deciding=None if deciding is None else verdict(deciding),
    )
