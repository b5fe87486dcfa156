"""What filters of several checks have in common: how strict each check is.

The law:

1. A check is `off`, or what it finds is logged (`log`), marked (`junk`) or refused (`reject`).
2. What is known decides.  The strictest of the checks that failed gives the decision, and the log
   has the reasons of all.
3. A check that could not be made (the DNS failed) is `--on-error`'s only where nothing else has
   decided, and not where the check is only to be logged: a trial changes nothing.

Who is exempt from checks is said in `exemptions`.

A filter declares a check with `check_option`, makes a `Check` of its setting in `setup`, and
collects in a `Findings` what the checks of one command come to.  One with a single check at a
command returns `Check.failed` as it is.
"""

from __future__ import annotations

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Junk, Proceed, Reject
from smtpd_filters.settings import choice, option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from smtpd_filters.settings import Settings
    from smtpd_filters.tables import Table

    #: What a check may come to.
    Outcome: TypeAlias = Proceed | Junk | Reject

#: What the setting of a check may be, in the order of their strictness.
STRICTNESS = ("off", "log", "junk", "reject")
CHECK = choice(*STRICTNESS)
# RFC 3463 section 3.5, X.4.3, "Directory server failure": "The inability to connect to an Internet
# DNS server is one example of the directory server failure error."
DNS_FAILURE = "4.4.3"
_MAPPED = "::ffff:"
_RANK: dict[type, int] = {Proceed: 0, Junk: 1, Reject: 2}


def check_option(default: str, help: str) -> str:  # noqa: A002  # as `option` calls it
    """Declare a check: `help` says what it finds, as "What to do with a name that ..."."""
    return option(CHECK, default=default, help=help)


class Check:
    """A check as it is set.

    `action` is one of `STRICTNESS`, `reply` what a client is told that it refuses: a line with
    code, enhanced code (RFC 3463) and text, as `Reject` takes it (ValueError if it doesn't; see
    `smtpd_filters.protocol.decisions.reply` for text from outside).
    """

    __slots__ = ("_failure", "action")

    def __init__(self, action: str, reply: str) -> None:
        if action not in STRICTNESS:
            raise ValueError(f"a check is one of {', '.join(STRICTNESS)}, not {action!r}")
        self.action = action
        refusal = Reject(reply)  # seen to be a reply whether it is used or not
        decisions: dict[str, Outcome] = {"junk": JUNK, "reject": refusal}
        self._failure = decisions.get(action, PROCEED)

    @property
    def on(self) -> bool:
        """Whether it is to be made at all."""
        return self.action != "off"

    def failed(self, reason: str, reply: str = "") -> Outcome:
        """Make a decision of a failure.

        `reason` is for the log: what was found, with the name or address it is about.  `reply`
        takes the place of the check's own where one text doesn't do for all.  A check that is off
        comes to nothing (`PROCEED`).
        """
        if self.action == "off":
            return PROCEED
        if reply and self.action == "reject":
            return Reject(reply).because(reason)
        return self._failure.because(reason)

    def unavailable(self, cause: str, status: str = DNS_FAILURE) -> Proceed:
        """Say that it could not be made, with the cause for the log.

        Raises UnavailableError, which `--on-error` answers, with the enhanced code `status` where
        that is a refusal.  A check that is off or only logged proceeds (law 3).
        """
        if self.action == "off":
            return PROCEED
        if self.action == "log":
            return PROCEED.because(cause)
        raise UnavailableError(cause, status)

    def __repr__(self) -> str:
        return f"<check {self.action}: {self._failure!r}>"


class Findings:
    """What the checks of one command come to, as they are made."""

    __slots__ = ("_decision", "_reasons", "_unavailable")

    def __init__(self) -> None:
        self._decision: Outcome = PROCEED
        self._reasons: list[str] = []
        self._unavailable: UnavailableError | None = None

    @property
    def refused(self) -> bool:
        """Whether the command is refused: no further check can change that."""
        return type(self._decision) is Reject

    def failed(self, check: Check, reason: str, reply: str = "") -> None:
        """Take in that a check failed; arguments as for `Check.failed`."""
        self._add(check.failed(reason, reply))

    def unavailable(self, check: Check, cause: str, status: str = DNS_FAILURE) -> None:
        """Take in that a check could not be made; arguments as for `Check.unavailable`."""
        try:
            self._add(check.unavailable(cause, status))
        except UnavailableError as error:
            self._unavailable = self._unavailable or error

    def _add(self, found: Outcome) -> None:
        if found.reason and found.reason not in self._reasons:
            self._reasons.append(found.reason)
        if _RANK[type(found)] > _RANK[type(self._decision)]:
            self._decision = found

    def decision(self) -> Outcome:
        """Give the strictest decision, because of all reasons.

        Raises the first UnavailableError where nothing is marked or refused (law 3).
        """
        if self._unavailable is not None:
            if type(self._decision) is Proceed:
                raise self._unavailable
            self._reasons.append(str(self._unavailable))
            self._unavailable = None
        if not self._reasons:
            return PROCEED
        return self._decision.because("; ".join(self._reasons))


def refuse_useless(settings: Settings, check: str, needed: str) -> None:
    """Refuse a check that was asked for and has nothing to go by: the option `needed` isn't set.

    Both are names of options.  Raises ConfigError: who has written it believes that it protects.
    """
    asked = check in settings.given and getattr(settings, check) != "off"
    if asked and getattr(settings, needed) is None:
        flags = settings.options
        raise ConfigError(f"--{flags[check].key} requires --{flags[needed].key}")


def refuse_empty(settings: Settings, *names: str) -> None:
    """Refuse inline tables without an entry, which protect nothing; `names` are of options.

    A file may be empty for now, and says so (`tables.source`).
    """
    for name in names:
        given: Table | None = getattr(settings, name)
        if given is not None and not given.is_file and not len(given):
            raise ConfigError(f"--{settings.options[name].key}: no entries in {given.source}")


def marks(checks: Iterable[Check]) -> bool:
    """Whether one of these checks may return junk; for `Registration.junk`."""
    return any(check.action == "junk" for check in checks)


def unmapped(address: str) -> str:
    """Give the IPv4 address of a client that came by IPv4 to an IPv6 socket; others as they are.

    RFC 4291 section 2.5.5.2, in the form in which the system writes it (RFC 5952 section 5).
    """
    return address.removeprefix(_MAPPED) if "." in address else address
