"""The limits of filter-limit as an operator writes them: `user messages 200/1h`.

A rule is a subject, what is counted of it, and an amount:

    client connections 20           at most 20 connections at once
    user messages 200/1h            a bucket of 200, filled again within an hour
    user messages 200/1h burst=20   the same rate, but a bucket of 20
    client+sender recipients 50/1h  for each pair of a client and a sender
    user networks 3/1h              clients of at most 3 networks within an hour
    user recipients 10x floor=100   10 times as many in a day as on any of the days before

Invariants
----------
*No rule without effect*: a combination that can never be checked is an error when it is parsed.
"""

from __future__ import annotations

from typing import NamedTuple

from smtpd_filters.settings import SECONDS, SIZE, Kind
from smtpd_filters.settings.quoting import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: The kinds of subjects, with the place in a session where each is known.
CONNECT, MAIL, RCPT = range(3)
SUBJECTS = {
    "all": CONNECT,
    "client": CONNECT,
    "network": CONNECT,
    "user": MAIL,
    "sender": MAIL,
    "sender-domain": MAIL,
    "recipient": RCPT,
    "recipient-domain": RCPT,
}
CONNECTIONS, MESSAGES, RECIPIENTS, BYTES, AUTH_FAILURES, REFUSED, NETWORKS = COUNTED = (
    "connections",
    "messages",
    "recipients",
    "bytes",
    "failed-auth",
    "refused-recipients",
    "networks",
)
#: What to do if a limit is exceeded; a rule without one has that of `--action`.
DELAY, TEMPFAIL, REJECT, JUNK, LOG, BLOCK = ACTIONS = (
    "delay",
    "tempfail",
    "reject",
    "junk",
    "log",
    "block",
)
#: What is known of a client before its mail.
_OF_CLIENTS = {"all", "client", "network", "user"}
#: The least number of a day for a sudden rise.
FLOOR = 50
_MOST = 1 << 40
#: What is an address of the envelope, or its domain.
ADDRESSES = {"sender", "sender-domain", "recipient", "recipient-domain"}
#: The members of a group are counted exactly up to this number (`stores.operations.MAX_MEMBERS`).
_MOST_MEMBERS = 9_999
_PERIOD = SECONDS(low=1, high=366 * 86400)


class Amount(NamedTuple):
    """How much a rule allows.

    `number` within `period` seconds, in a bucket of `burst`; with a period of 0 at once; or, with
    `rise`, that many times the own past, if the number of the day is at least `burst`.
    """

    number: int
    period: float = 0.0
    burst: int = 0
    rise: bool = False

    @property
    def rate(self) -> float:
        """Units of each second."""
        return self.number / self.period

    def show(self, *, size: bool = False) -> str:
        """Return it as `parse_amount` and the options of a rule have it."""
        number = SIZE.show if size else str
        if self.rise:
            return f"{self.number}x" + (f" floor={self.burst}" if self.burst != FLOOR else "")
        if not self.period:
            return str(self.number)
        text = f"{number(self.number)}/{_PERIOD.show(self.period)}"
        return text if self.burst == self.number else f"{text} burst={number(self.burst)}"


class Rule(NamedTuple):
    """A limit: the kinds of its subject, what is counted, and how much of it is allowed."""

    subject: tuple[str, ...]
    counted: str
    amount: Amount
    #: One of ACTIONS, or "" for that of `--action`.
    action: str = ""

    @property
    def at_once(self) -> bool:
        """Whether it bounds connections at one time."""
        return self.counted == CONNECTIONS and not self.amount.period

    @property
    def known(self) -> int:
        """The place at which its subject is known: CONNECT, MAIL or RCPT."""
        return max(SUBJECTS[kind] for kind in self.subject)

    @property
    def text(self) -> str:
        """The rule without its action, for the log and the store."""
        amount = self.amount.show(size=self.counted == BYTES)
        return f"{'+'.join(self.subject)} {self.counted} {amount}"

    def __str__(self) -> str:
        return self.text + (f" action={self.action}" if self.action else "")


def parse_rule(text: str) -> Rule:
    """Parse a rule; raise ValueError with the reason."""
    subject, counted, amount, *options = (*text.split(), "", "", "")[: max(len(text.split()), 3)]
    if not amount:
        raise ValueError(f"expected {LIMIT.noun}, not {quote(text)}")
    kinds = parse_subject(subject)
    values = parse_options(options)
    parsed = parse_amount(counted, amount, values)
    action = values.pop("action", "")
    if values:
        raise ValueError(f"{next(iter(values))}= has no effect here")
    rule = Rule(kinds, counted, parsed, action)
    _check(rule)
    return rule


def parse_subject(text: str) -> tuple[str, ...]:
    """Parse the kinds of a subject, `client+user`; raise ValueError."""
    kinds = tuple(text.split("+"))
    for kind in kinds:
        if kind not in SUBJECTS:
            raise ValueError(f"{quote(kind)} is not one of {', '.join(SUBJECTS)}")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"{quote(text)} has a part twice")
    if "all" in kinds and len(kinds) > 1:
        raise ValueError("all can't be combined")
    return kinds


def parse_amount(counted: str, text: str, options: dict[str, str]) -> Amount:
    """Parse an amount, and remove its options; raise ValueError."""
    if counted not in COUNTED:
        raise ValueError(f"{quote(counted)} is not one of {', '.join(COUNTED)}")
    if text.endswith("x") and "/" not in text:
        if counted not in {MESSAGES, RECIPIENTS}:
            raise ValueError(f"a rise is one of {MESSAGES} or {RECIPIENTS}, not of {counted}")
        floor = options.pop("floor", "")
        return Amount(_number(text[:-1]), 0.0, _number(floor) if floor else FLOOR, rise=True)
    number, slash, period = text.partition("/")
    size = counted == BYTES
    many = _number(number, size=size)
    if not slash:
        if counted != CONNECTIONS:
            raise ValueError(f"{counted} require a period, as in {number}/1h")
        return Amount(_members(many))
    seconds = _PERIOD.parse(period)
    if counted == NETWORKS:
        return Amount(_members(many), seconds, many)
    burst = options.pop("burst", "")
    return Amount(many, seconds, _number(burst, size=size) if burst else many)


def _members(number: int) -> int:
    if number > _MOST_MEMBERS:
        raise ValueError(f"at most {_MOST_MEMBERS} at once can be counted")
    return number


def _number(text: str, *, size: bool = False) -> int:
    if size:
        number = SIZE(low=1).parse(text)
    elif text.isascii() and text.isdigit() and 0 < len(text) <= 12:
        number = int(text)
    else:
        raise ValueError(f"{quote(text)} is not a number")
    if not 0 < number <= _MOST:
        raise ValueError(f"{quote(text)} is not a positive number")
    return number


def parse_options(words: Iterable[str]) -> dict[str, str]:
    """Parse the options behind an amount, `burst=20`; raise ValueError."""
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in {"burst", "floor", "action"}:
            raise ValueError(f"{quote(word)} is not burst=N, floor=N or action=ACTION")
        if name in options:
            raise ValueError(f"{name}= is there twice")
        if name == "action" and value not in ACTIONS:
            raise ValueError(f"{quote(value)} is not one of {', '.join(ACTIONS)}")
        options[name] = value
    return options


def _check(rule: Rule) -> None:
    """Raise ValueError for a rule that can't be checked."""
    kinds, counted = set(rule.subject), rule.counted
    if counted == AUTH_FAILURES and not kinds <= _OF_CLIENTS:
        raise ValueError(f"{counted} are counted by {', '.join(sorted(_OF_CLIENTS))} only")
    if counted == NETWORKS and rule.subject != ("user",):
        raise ValueError(f"{counted} are counted by user only")
    if counted == CONNECTIONS and not (rule.at_once or kinds <= _OF_CLIENTS):
        raise ValueError("a rate of connections is by all, client, network or user only")
    if rule.known == RCPT and (counted in {BYTES, REFUSED} or rule.amount.rise):
        raise ValueError(f"{counted} can't be counted by recipient here")
    if rule.action == DELAY and (rule.at_once or rule.amount.rise or counted in {NETWORKS, BYTES}):
        raise ValueError("action=delay is for rates, without that of bytes")
    if rule.action == JUNK and counted == AUTH_FAILURES:
        raise ValueError("action=junk: there is no message to mark yet")
    if rule.action == BLOCK and kinds == {"all"}:
        raise ValueError("action=block: would block all mail")


class _Limit(Kind[Rule]):
    metavar = "LIMIT"
    noun = 'a limit such as "user messages 200/1h"'
    toml = (str, dict)

    def parse(self, text: str) -> Rule:
        return parse_rule(text)

    def from_toml(self, value: object) -> Rule:
        if not isinstance(value, dict):
            return super().from_toml(value)
        words = {name: str(each) for name, each in value.items()}
        parts = [words.pop(name, "") for name in ("by", "of", "limit")]
        if not all(parts):
            raise ValueError('expected { by = "user", of = "messages", limit = "200/1h" }')
        return parse_rule(" ".join([*parts, *(f"{name}={text}" for name, text in words.items())]))


#: The kind of `--limit`.
LIMIT = _Limit()


class _Mailbox(Kind[str]):
    metavar = "ADDRESS"
    noun = "a mail address"

    def parse(self, text: str) -> str:
        _, at, domain = text.rpartition("@")
        words = text.split()
        if not (at and domain and text.isprintable() and words == [text]) or text[0] == "-":
            raise ValueError(f"expected {self.noun}, not {quote(text)}")
        return text


#: The kind of `--notify-mail`.
MAILBOX = _Mailbox()
