"""The claims that a command makes on limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rules import (
    ADDRESSES,
    AUTH_FAILURES,
    BYTES,
    CONNECT,
    CONNECTIONS,
    MESSAGES,
    NETWORKS,
    RCPT,
    RECIPIENTS,
    REFUSED,
)
from .steps import Claim

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smtpd_filters.session import Session

    from .overrides import OverrideTable
    from .rules import Rule
    from .subjects import Values


class State:
    """What is remembered of a session."""

    __slots__ = ("counted", "guess", "refused")

    def __init__(self) -> None:
        #: The keys under which this session is counted as a connection.
        self.counted: set[bytes] = set()
        #: What the authentication in progress has taken.
        self.guess: Sequence[Claim] = ()
        #: The number of refused recipients that have been counted.
        self.refused = 0


class Book:
    """The rules, by the handlers at which they are checked."""

    def __init__(self, rules: Sequence[Rule], override: OverrideTable | None) -> None:
        self._override = override
        self.handlers: dict[str, list[Rule]] = {}
        for rule in rules:
            for handler in handlers_of(rule):
                self.handlers.setdefault(handler, []).append(rule)
        kinds = {kind for rule in rules for kind in rule.subject}
        #: Whether any is by user.
        self.by_user = "user" in kinds
        #: Whether any is by an address, which the server's name may complete.
        self.by_address = not kinds.isdisjoint(ADDRESSES)
        self.counts_refused = any(rule.counted == REFUSED for rule in rules)
        self.at_once = any(rule.at_once for rule in rules)
        #: The subjects that may be blocked.
        self._blockable = list(
            dict.fromkeys(
                rule.subject for rule in rules if rule.known < RCPT and rule.subject != ("all",)
            )
        )
        if self._blockable:
            self.handlers.setdefault("mail_from", [])

    def blocks(self, values: Values) -> list[str]:
        """Return the subjects of a command that may be blocked."""
        return [each for kinds in self._blockable if (each := values.subject(kinds))]

    def of(
        self, handler: str, values: Values, session: Session, state: State, *, cost: int = 1
    ) -> list[Claim]:
        """Return the claims of a command, without those that are unlimited or don't apply.

        A session is counted once as a connection. Refused recipients cost what has been refused
        since the last claims, maybe nothing: then the claim is only checked.
        """
        claims = []
        for claim in self._claims(handler, values, cost):
            counted = claim.rule.counted
            if counted == CONNECTIONS:
                if claim.key in state.counted:
                    continue
                claims.append(claim._replace(member=session.id))
            elif counted == NETWORKS:
                if (network := values.get("network")) is not None:
                    claims.append(claim._replace(member=network))
            elif counted == REFUSED:
                claims.append(claim._replace(cost=new_refusals(session, state)))
            else:
                claims.append(claim)
        if handler == "mail_from":
            claims += self._kept(values, session, state)
        return claims

    def _kept(self, values: Values, session: Session, state: State) -> Iterable[Claim]:
        """Return the claims of a connection that another process has let in.

        That process has ended, under a supervisor: this one was never asked about the connection.
        """
        for claim in self._claims("connect", values, 1):
            if claim.rule.at_once and claim.key not in state.counted:
                yield claim._replace(member=session.id, kept=True)

    def of_refusals(self, values: Values, session: Session, state: State) -> list[Claim]:
        """Return the claims of refused recipients alone."""
        number = new_refusals(session, state)
        claims = self._claims("rcpt_to", values, number) if number else ()
        return [claim for claim in claims if claim.rule.counted == REFUSED]

    def _claims(self, handler: str, values: Values, cost: int) -> Iterable[Claim]:
        for rule in self.handlers.get(handler, ()):
            subject = values.subject(rule.subject)
            if subject is None:
                continue
            amount = rule.amount
            if self._override is not None:
                found = self._override.amount(rule, values)
                if found is None:
                    continue
                amount = found
            yield Claim(rule._replace(amount=amount), subject, cost)


def new_refusals(session: Session, state: State) -> int:
    """Return how many recipients were refused that have not been counted."""
    return max(session.refused_recipients - state.refused, 0)


def handlers_of(rule: Rule) -> Sequence[str]:
    """Return the handlers at which a rule is checked."""
    at = ("connect", "mail_from", "rcpt_to")[rule.known]
    match rule.counted:
        case name if name == AUTH_FAILURES:
            return ("auth",)
        case name if name == BYTES:
            return ("message",)
        case name if name == RECIPIENTS:
            return ("rcpt_to",)
        case name if name == REFUSED:
            return ("mail_from", "rcpt_to")
        case name if name == MESSAGES and rule.known == CONNECT:
            return ("mail_from",)
    return (at,)
