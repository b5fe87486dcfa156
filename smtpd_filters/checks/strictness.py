"""The checks of a filter, each with its own strictness, and the decision they combine to.

A check is `off`, or its failure is logged (`log`), marked (`junk`) or refused (`reject`).

Invariants
----------
*Strictest wins*: the strictest of the failed checks determines the decision; the log has the
reasons of all.
*Facts before errors*: `--on-error` decides on an unavailable check (the DNS failed) only if no
failed check marks or refuses.
*Log is a trial*: a check set to `log` never changes a decision, not even if it is unavailable.

A filter declares a check with `check_option`, makes a `Check` of its setting in `setup`, and
collects the results of the checks of one command in a `Findings`. A filter with a single check at a
command returns the result of `Check.failed`. Exemptions are in `exemptions`.
"""

from __future__ import annotations

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.lookups.outcome import DNS_FAILURE
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Junk, Proceed, Reject
from smtpd_filters.settings import choice, option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeAlias

    from smtpd_filters.settings import Settings
    from smtpd_filters.tables import Table

    #: The result of a check.
    Result: TypeAlias = Proceed | Junk | Reject

#: The values of a check's setting, in order of strictness.
STRICTNESS = ("off", "log", "junk", "reject")
CHECK = choice(*STRICTNESS)
_RANK: dict[type, int] = {Proceed: 0, Junk: 1, Reject: 2}


def check_option(default: str, help: str) -> str:  # noqa: A002  # as `option` calls it
    """Declare a check, with a `help` like "What to do with a name that ..."."""
    return option(CHECK, default=default, help=help)


class Check:
    """A check and its setting.

    `action` is one of `STRICTNESS`. `reply` is the SMTP reply of a refusal: one line with code,
    enhanced code (RFC 3463) and text. `smtpd_filters.protocol.decisions.reply` makes one from
    untrusted text.

    Raises ValueError if `Reject` does not accept the reply.
    """

    __slots__ = ("_failure", "action")

    def __init__(self, action: str, reply: str) -> None:
        if action not in STRICTNESS:
            raise ValueError(f"a check is one of {', '.join(STRICTNESS)}, not {action!r}")
        self.action = action
        refusal = Reject(reply)  # validates the reply, whether it is used or not
        decisions: dict[str, Result] = {"junk": JUNK, "reject": refusal}
        self._failure = decisions.get(action, PROCEED)

    @property
    def on(self) -> bool:
        """Whether the check is enabled."""
        return self.action != "off"

    def failed(self, reason: str, reply: str = "") -> Result:
        """Return the decision for a failure of the check.

        `reason` is for the log: what was found, with the name or address it is about. `reply`
        replaces the check's own where one text doesn't suit all failures. The decision of a check
        that is off is `PROCEED`.
        """
        if self.action == "off":
            return PROCEED
        if reply and self.action == "reject":
            return Reject(reply).because(reason)
        return self._failure.because(reason)

    def unavailable(self, cause: str, status: str = DNS_FAILURE) -> Proceed:
        """Raise UnavailableError for a check that could not be made, so that `--on-error` decides.

        `cause` is for the log, `status` the enhanced code if `--on-error` refuses. A check that is
        off or only logged proceeds (*Log is a trial*).
        """
        if self.action == "off":
            return PROCEED
        if self.action == "log":
            return PROCEED.because(cause)
        raise UnavailableError(cause, status)

    def __repr__(self) -> str:
        return f"<check {self.action}: {self._failure!r}>"


def checks_of(settings: Settings, replies: Mapping[str, str]) -> dict[str, Check]:
    """Return the checks of a filter by the names of their options, which `replies` has.

    Raises ConfigError if every check is off.
    """
    checks = {name: Check(getattr(settings, name), replies[name]) for name in replies}
    require_check(checks.values())
    return checks


def require_check(checks: Iterable[Check]) -> None:
    """Raise ConfigError if every check is off."""
    if not any(check.on for check in checks):
        raise ConfigError("nothing to check: every check is off")


class Findings:
    """The combined results of the checks of one command."""

    __slots__ = ("_decision", "_reasons", "_unavailable")

    def __init__(self) -> None:
        self._decision: Result = PROCEED
        self._reasons: list[str] = []
        self._unavailable: UnavailableError | None = None

    @property
    def refused(self) -> bool:
        """Whether the command is refused, which no further check can change."""
        return type(self._decision) is Reject

    def failed(self, check: Check, reason: str, reply: str = "") -> None:
        """Add the failure of a check; the arguments are those of `Check.failed`."""
        self._add(check.failed(reason, reply))

    def unavailable(self, check: Check, cause: str, status: str = DNS_FAILURE) -> None:
        """Add an unavailable check; the arguments are those of `Check.unavailable`."""
        try:
            self._add(check.unavailable(cause, status))
        except UnavailableError as error:
            self._unavailable = self._unavailable or error

    def _add(self, found: Result) -> None:
        if found.reason and found.reason not in self._reasons:
            self._reasons.append(found.reason)
        if _RANK[type(found)] > _RANK[type(self._decision)]:
            self._decision = found

    def decision(self) -> Result:
        """Return the strictest decision, with the reasons of all.

        Raises the first UnavailableError if nothing is marked or refused (*Facts before errors*).
        """
        if self._unavailable is not None:
            if type(self._decision) is Proceed:
                raise self._unavailable
            self._reasons.append(str(self._unavailable))
            self._unavailable = None
        if not self._reasons:
            return PROCEED
        return self._decision.because("; ".join(self._reasons))


def require_option(settings: Settings, check: str, needed: str) -> None:
    """Raise ConfigError if the option `check` was enabled but the option `needed` isn't set.

    Such a check would never fail, though the operator relies on it.
    """
    asked = check in settings.given and getattr(settings, check) != "off"
    if asked and getattr(settings, needed) is None:
        flags = settings.options
        raise ConfigError(f"--{flags[check].key} requires --{flags[needed].key}")


def require_entries(settings: Settings, *names: str) -> None:
    """Raise ConfigError if an inline table of the options `names` has no entries.

    A file may be empty for now, which is logged (`tables.source`).
    """
    for name in names:
        given: Table | None = getattr(settings, name)
        if given is not None and not (given.is_file or given.remotes or len(given)):
            raise ConfigError(f"--{settings.options[name].key}: no entries in {given.source}")


def marks(checks: Iterable[Check]) -> bool:
    """Return whether one of these checks may mark as junk, for `Registration.junk`."""
    return any(check.action == "junk" for check in checks)
