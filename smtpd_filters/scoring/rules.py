"""The rules of a chain beyond its order: points, thresholds, and what bypasses it."""

from __future__ import annotations

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.decisions import (
    MAX_POINTS,
    Decision,
    Exemption,
    Junk,
    Marked,
    Points,
    Proceed,
    Reject,
    Rewrite,
)
from smtpd_filters.settings import (
    LIST,
    NUMBER,
    REPLY,
    SWITCH,
    Kind,
    Settings,
    choice,
    option,
    table,
)
from smtpd_filters.settings.quoting import quote
from smtpd_filters.tables import AddressTable, HostTable, NetworkTable, StringTable

from .tally import Scale

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

#: The actions that points can stand for.
ACTIONS = ("junk", "reject", "tempfail")
#: The verdict on a client, message or recipient that a filter exempts from its own checks.
EXEMPT = "exempt"
_AT = choice("connect", "helo", "mail-from", "rcpt-to", "data")


class RuleError(ConfigError):
    """A rule that contradicts another, or the chain's filters; the text begins with its key.

    `filter` is the name of the filter whose rule it is; "" for one of the chain.
    """

    def __init__(self, text: str, filter_: str = "") -> None:
        super().__init__(text)
        self.filter = filter_


class _Thousandths(Kind[float]):
    """A number with at most three decimals."""

    inward = True
    metavar = "NUMBER"
    noun = "a number"
    toml = (int, float)

    def __init__(self, low: float) -> None:
        self._number = NUMBER(low=low, high=MAX_POINTS)

    def parse(self, text: str) -> float:
        value = self._number.parse(text)
        if round(value, 3) != value:
            raise ValueError(f"expected at most three decimals, not {quote(text)}")
        return value


class _PointsKind(Kind["dict[str, float]"]):
    """Points by action; one number stands for all actions."""

    inward = True
    metavar = "POINTS"
    noun = "points: a number, or a table such as { junk = 2, reject = 5 }"
    noun_in_code = 'points: a number, or a mapping such as {"junk": 2, "reject": 5}'
    toml = (int, float, dict)
    _number = _Thousandths(-MAX_POINTS)

    def parse(self, text: str) -> dict[str, float]:
        if "=" not in text:
            return dict.fromkeys(ACTIONS, self._number.parse(text))
        pairs = (each.partition("=") for each in text.split(","))
        return {self._action(name.strip()): self._number.parse(one) for name, _, one in pairs}

    def show(self, value: dict[str, float]) -> str:
        if len(value) == len(ACTIONS) and len(set(value.values())) == 1:
            return self._number.show(next(iter(value.values())))
        return ",".join(f"{name}={self._number.show(points)}" for name, points in value.items())

    def from_toml(self, value: object) -> dict[str, float]:
        if isinstance(value, dict):
            if not value:
                raise ValueError(f"expected {self.noun}")
            return {
                self._action(name): self._number.from_toml(each) for name, each in value.items()
            }
        return dict.fromkeys(ACTIONS, self._number.from_toml(value))

    def to_toml(self, value: dict[str, float]) -> object:
        """Return a number, or a table."""
        same = len(value) == len(ACTIONS) and len(set(value.values())) == 1
        return next(iter(value.values())) if same else dict(value)

    @staticmethod
    def _action(name: str) -> str:
        if name not in ACTIONS:
            raise ValueError(f"unknown action {quote(name)} (choose from {', '.join(ACTIONS)})")
        return name


class FilterRules(Settings):
    """The keys of a filter's table that belong to its chain, as smtpd-filters.toml(5) has them.

    `FilterRules(score=5, bypass=("junk",))` creates them in code, and raises TypeError for an
    invalid value. A single number of points becomes a mapping of all actions.
    """

    def __init__(self, **values: Any) -> None:
        score = values.get("score")
        if type(score) in {int, float}:
            values["score"] = dict.fromkeys(ACTIONS, score)
        super().__init__(**values)

    score = option(
        _PointsKind(),
        default=None,
        help="The points that the filter adds instead of acting: a number for each action, or a "
        "table by action (junk, reject, tempfail). An action that isn't named is taken as usual.",
    )
    bypass = option(
        LIST(choice(EXEMPT, *ACTIONS)),
        default=(),
        help="The verdicts of the filter that end the chain for this session, message or "
        "recipient: exempt, or actions, which are not taken then (junk, reject, tempfail).",
    )


_THRESHOLD = _Thousandths(0.001)


class RuleSettings(Settings):
    """The keys of a chain's table about its score and what bypasses it.

    They are in smtpd-filters.toml(5); here `junk-at` is `junk_at`. `RuleSettings(junk_at=4)`
    creates them in code, and raises TypeError for an invalid value.
    """

    junk_at = option(
        _THRESHOLD,
        default=None,
        help="The score from which a message is marked as junk.",
    )
    greylist_at = option(
        _THRESHOLD,
        default=None,
        help="The score from which the chain's filter of the kind greylist is asked.",
    )
    reject_at = option(
        _THRESHOLD,
        default=None,
        help="The score from which a client or a message is refused, as soon as no filter that is "
        "still to be asked can lower it.",
    )
    score_at = option(
        _AT,
        default="connect",
        help="The first phase at which the score refuses.",
    )
    score_reply = option(
        REPLY,
        default=None,
        help="The SMTP reply of a refusal by score; by default "
        '"550 5.7.1 Refused as probable spam" (554 at connect).',
    )
    score_header = option(
        SWITCH,
        default=False,
        help="Add a field X-Smtpd-Filters-Score to messages. All filters are asked then, unless "
        "the message is refused.",
    )
    bypass_clients = option(
        table(NetworkTable),
        default=None,
        help="Addresses and networks of clients that bypass the chain.",
    )
    bypass_names = option(
        table(HostTable),
        default=None,
        help="Reverse names of clients that bypass the chain, if they resolve to the client.",
    )
    bypass_users = option(
        table(StringTable),
        default=None,
        help="Authenticated users that bypass the chain, from mail-from on; the entry * means all.",
    )
    bypass_recipients = option(
        table(AddressTable),
        default=None,
        help="Recipients for whom the chain is bypassed, at rcpt-to. Later phases are bypassed "
        "only if all recipients of the message are in the table.",
    )


class Bypass(Decision):
    """Accept, and end the chain for this session or message; only within a chain."""

    __slots__ = ()
    verb = "bypass"

    def __init__(self) -> None:
        super().__init__(b"proceed")


class Rules:
    """The rules of a chain: its own settings, and those of its filters by their names.

    A chain raises ConfigError for rules that contradict each other, for a threshold that can't be
    reached, and for a name that none of its filters has.
    """

    def __init__(
        self, settings: RuleSettings | None = None, filters: Mapping[str, FilterRules] | None = None
    ) -> None:
        #: Those of the chain.
        self.settings = settings or RuleSettings()
        #: Those of its filters, by their names.
        self.filters = dict(filters or {})

    def __bool__(self) -> bool:
        every = (self.settings, *self.filters.values())
        names = {*RuleSettings.options, *FilterRules.options}
        return any(each.given & names for each in every)

    @property
    def scores(self) -> bool:
        """Whether the chain has a score."""
        settings = self.settings
        thresholds = (settings.junk_at, settings.reject_at, settings.greylist_at)
        return settings.score_header or any(each is not None for each in thresholds)

    def scale(self) -> Scale:
        """Return the thresholds."""
        settings = self.settings
        given = (settings.junk_at, settings.reject_at, settings.greylist_at)
        return Scale(*(None if each is None else round(each * 1000) for each in given))

    def treatment(self, filter_: str) -> Treatment | None:
        """Return what becomes of a filter's decisions; None without rules for the filter."""
        rules = self.filters.get(filter_)
        return None if rules is None else Treatment(rules)

    @property
    def tables(self) -> Iterable[tuple[str, Any]]:
        """The names and tables of what bypasses the chain."""
        for name, value in vars(self.settings).items():
            if name.startswith("bypass_") and value is not None:
                yield name.replace("_", "-"), value


class Treatment:
    """What becomes of the decisions of one filter: points, a bypass, or themselves."""

    __slots__ = ("bypass", "points")

    def __init__(self, rules: FilterRules) -> None:
        score: Mapping[str, float] = rules.score or {}
        self.points = {name: round(each * 1000) for name, each in score.items()}
        self.bypass = frozenset(rules.bypass)

    def apply(self, decision: Decision, *, failed: bool) -> Decision:
        """Return a decision, or what replaces it.

        A failure is no evidence: it bypasses nothing, and its points are temporary, and none in
        favour of the client.
        """
        action = action_of(decision)
        if action in self.bypass and not failed:
            return Bypass().because(decision.reason)
        if (points := self.points.get(action)) is None:
            return decision
        made = Points(
            max(points, 0) / 1000 if failed else points / 1000,
            temporary=failed or action == "tempfail",
            instead="marked" if type(decision) is Marked else decision.verb,
        )
        return made.because(decision.reason)


def action_of(decision: Decision) -> str:
    """Return the action that a decision is, in `ACTIONS`, or `EXEMPT`; "" for any other."""
    if isinstance(decision, Junk | Marked):
        return "junk"
    if decision.verb in {"reject", "disconnect"}:
        return "tempfail" if decision.text.startswith("4") else "reject"
    if isinstance(decision, Proceed) and type(decision.reason) is Exemption:
        return EXEMPT
    return ""


def actions_of(kinds: Iterable[type[Decision]], fallback: Decision) -> set[str]:
    """Return the actions that a handler may take, "rewrite" included."""
    found = {action_of(fallback)} - {""}
    for kind in kinds:
        if issubclass(kind, Junk | Marked):
            found.add("junk")
        elif issubclass(kind, Reject) or kind.verb == "disconnect":
            found |= {"reject", "tempfail"}
        elif issubclass(kind, Rewrite):
            found.add("rewrite")
    return found
