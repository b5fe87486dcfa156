"""The decision on a message by its results and the operator's actions.

Invariants
----------
*Strictest wins*: of all findings the strictest action is taken; the log has the reasons of all.
*Facts before errors*: a failed look-up counts only if no finding marks or refuses, and only if an
action depends on the result.
*No way around a policy*: if the policy of an author's domain is known but its result is not, the
message has an action of its own: a sender can name domains whose look-ups fail.
*Results stay*: a trusted sealer or an excepted domain changes the action, never the result. If
the server of their table is down, `--on-error` decides in place of the action.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smtpd_filters.addresses import canonical
from smtpd_filters.authentication.results import parse
from smtpd_filters.checks.exemptions import UNKNOWN
from smtpd_filters.errors import UnavailableError
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Junk, Points, Proceed, Reject, reply

from .actions import POINTS, points_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    from smtpd_filters.authentication import dmarc, spf

    from .evidence import Evidence

    Answer: TypeAlias = Proceed | Junk | Reject | Points

#: The actions, in order of strictness. The number of points follows, as in "points=2.5".
ACTIONS = ("ignore", "log", POINTS, "junk", "tempfail", "reject")
#: Sets of a chain that can't be validated now, whose results are read: some milliseconds for each.
MAX_UNKNOWN = 8
#: Those that decide what becomes of a message.
_DECISIVE = ("junk", "tempfail", "reject")


@dataclass(frozen=True, slots=True)
class Actions:
    """The action for each finding, a word of `ACTIONS`; behind `points` follows their number."""

    spf_fail: str
    spf_softfail: str
    dkim_fail: str
    quarantine: str
    reject: str
    bad_from: str
    #: For a result of DMARC that is unknown: "" is `tempfail` if the policy's action is decisive.
    dmarc_error: str = ""
    #: For SPF of the greeting, unless the sender is the null sender.
    spf_helo_fail: str = "ignore"

    def of_fail(self, policy: str) -> str:
        """Return the action for a message that fails under a policy."""
        return {"quarantine": self.quarantine, "reject": self.reject}.get(policy, "log")

    def of_error(self, policy: str) -> str:
        """Return the action for a message of which it is unknown whether it fails."""
        return self.dmarc_error or ("tempfail" if self.of_fail(policy) in _DECISIVE else "log")

    @property
    def points(self) -> float:
        """The most points that a message can get."""
        spf = max(map(points_of, (self.spf_fail, self.spf_softfail, self.spf_helo_fail)))
        dmarc = max(map(points_of, (self.quarantine, self.reject, self.dmarc_error)))
        return spf + dmarc + points_of(self.dkim_fail) + points_of(self.bad_from)


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding: its action, its reason for the log, and the detail and text of a refusal.

    Without an action `--on-error` decides. `detail` is an enhanced code without its class. Of
    several findings of one `method` the most points count.
    """

    action: str
    reason: str
    detail: str
    text: str
    method: str = ""

    @property
    def strictness(self) -> int:
        """The rank of its action."""
        return ACTIONS.index(self.action.partition("=")[0])

    def decision(self) -> Answer:
        """Return the decision for the action."""
        match self.action:
            case "junk":
                return JUNK
            case "tempfail":
                return Reject(reply(451, f"4.{self.detail}", self.text))
            case "reject":
                return Reject(reply(550, f"5.{self.detail}", self.text))
        return PROCEED


@dataclass(frozen=True, slots=True)
class _Failure:
    """A failure under a DMARC policy; `unknown` is whether the message may pass as well."""

    policy: str
    action: str
    reason: str
    unknown: bool = False


class Judgement:
    """The findings on one message; `troubles` are the failures of look-ups that matter.

    `excepts` returns the entry of a table that excepts a domain from all actions; `trusts` that of
    a sealer whose word overrides DMARC.
    """

    def __init__(
        self,
        actions: Actions,
        evidence: Evidence,
        *,
        excepts: Callable[[str], str | None],
        trusts: Callable[[str], str | None],
    ) -> None:
        self._actions = actions
        self._excepts = excepts
        self._trusts = trusts
        self.findings: list[Finding] = []
        self.troubles: list[Finding] = []
        self.overridden: list[str] = []
        #: The action for each of the author's domains that failed DMARC.
        self.taken: dict[str, str] = {}
        self._judge_spf(evidence)
        self._judge_dkim(evidence)
        self._judge_authors(evidence)

    # RFC 7372 section 3.2: X.7.23, "SPF validation failed", X.7.24, "SPF validation error".
    def _judge_spf(self, evidence: Evidence) -> None:
        of_mail = {"fail": self._actions.spf_fail, "softfail": self._actions.spf_softfail}
        self._judge_identity(evidence.mail, of_mail)
        if not evidence.null:
            self._judge_identity(evidence.helo, {"fail": self._actions.spf_helo_fail}, " of HELO")

    def _judge_identity(
        self, verdict: spf.Verdict | None, actions: dict[str, str], note: str = ""
    ) -> None:
        """Judge a result for the sender or the greeting by the actions; `note` names the latter."""
        if verdict is None:
            return
        verb = "greet as" if note else "send mail of"
        if action := actions.get(verdict.result):
            self._add(
                verdict.domain,
                action,
                f"spf={verdict.result} {verdict.domain}{note}",
                ("7.23", f"SPF: this client may not {verb} {verdict.domain}"),
            )
        elif verdict.result == "temperror":
            detail = "3.0" if verdict.problem == UNKNOWN else "7.24"
            self._trouble(actions.values(), f"spf: {verdict.problem}{note}", detail)

    # RFC 7372 section 3.1: X.7.20, "No passing DKIM signature found".
    def _judge_dkim(self, evidence: Evidence) -> None:
        signatures = evidence.verified.signatures
        results = {each.result for each in signatures}
        if not signatures or "pass" in results:
            return
        for each in signatures:
            if each.result == "temperror":
                self._trouble([self._actions.dkim_fail], f"dkim: {each.reason}", "4.3")
                return
        first = signatures[0]
        self._add(
            first.domain,
            self._actions.dkim_fail,
            f"dkim={first.result} {first.domain}: {first.reason}",
            ("7.20", "No valid DKIM signature found"),
        )

    # RFC 7372 section 3.4: X.7.26, "Multiple authentication checks failed". RFC 9989 section 5.4
    # wants the word DMARC in the reply.
    def _judge_authors(self, evidence: Evidence) -> None:
        if problem := evidence.authors.problem:
            self._add("", self._actions.bad_from, f"from: {problem}", ("7.1", f"From: {problem}"))
        for verdict in evidence.verdicts:
            domain = verdict.policy.domain
            if verdict.result == "temperror" and verdict.at_stake == "none":
                actions = (self._actions.quarantine, self._actions.reject)
                self._trouble(actions, f"dmarc of {domain}: {verdict.problem}", "4.3")
            elif verdict.result in {"fail", "temperror"}:
                self._judge_policy(verdict, evidence)

    def _judge_policy(self, verdict: dmarc.Verdict, evidence: Evidence) -> None:
        """Judge a message that fails under a policy, or may do so."""
        domain, failure = verdict.policy.domain, self._failure(verdict)
        try:
            if sealer := self._sealer(domain, evidence):
                failure = self._sealed(failure, domain, sealer, evidence)
        except UnavailableError as error:
            failure = replace(failure, action=self._unknown(failure.action, error))
        refusal = "7.26", f"Not authenticated, refused per DMARC policy of {domain}"
        if failure.unknown:
            refusal = "4.3", f"DMARC of {domain} can't be checked now, please try again later"
        self.taken[domain] = self._add(
            domain, failure.action, failure.reason, refusal, unknown=failure.unknown
        )

    def _failure(self, verdict: dmarc.Verdict) -> _Failure:
        """Return the failure with the action for the policy."""
        unknown = verdict.result == "temperror"
        policy = verdict.at_stake if unknown else verdict.disposition
        reason = f"dmarc={verdict.result} {verdict.policy.domain} policy={policy}"
        if unknown:
            reason = f"{reason}: {verdict.problem}"
            return _Failure(policy, self._actions.of_error(policy), reason, unknown=True)
        return _Failure(policy, self._actions.of_fail(policy), reason)

    def _sealed(self, failure: _Failure, domain: str, sealer: str, evidence: Evidence) -> _Failure:
        """Return the failure of a message for which a trusted sealer states that DMARC passed."""
        arc = evidence.verified.arc
        if arc.result == "pass":
            self.overridden.append(domain)
            reason = f"{failure.reason}, overridden by ARC sealer {sealer}"
            return replace(failure, action="log", reason=reason)
        if self._actions.of_error(failure.policy) != "tempfail":
            return failure
        # The sealer's word may count at the next attempt.
        reason = f"{failure.reason}, ARC sealer {sealer}: {arc.reason}"
        return replace(failure, action="tempfail", reason=reason, unknown=True)

    def trusts(self, domain: str) -> bool:
        """Return whether the ARC seals of a domain are trusted."""
        try:
            return bool(self._trusts(domain))
        except UnavailableError:
            return False

    def _sealer(self, domain: str, evidence: Evidence) -> str:
        """Return the trusted sealer that states that DMARC passed for a domain, or "".

        The chain is followed from its newest set to the first sealer that isn't trusted. If it
        can't be validated now, `MAX_UNKNOWN` sets are read: anybody may have written them. Raises
        UnavailableError.
        """
        arc = evidence.verified.arc
        if arc.result != "pass" and not arc.temporary:
            return ""
        sets = arc.sets[-MAX_UNKNOWN:] if arc.temporary else arc.sets
        for each in reversed(sets):
            if not self._trusts(each.domain):
                break
            content = parse(each.results)
            for result in content.results if content else ():
                if (result.method, result.result) == ("dmarc", "pass"):
                    values = dict(result.properties)
                    if canonical(values.get("header.from", "")) == domain:
                        return each.domain
        return ""

    def _add(
        self,
        domain: str,
        action: str,
        reason: str,
        refusal: tuple[str, str],
        *,
        unknown: bool = False,
    ) -> str:
        """Add a finding; return its action, which an exception changes.

        If the result is `unknown`, a decisive action comes after those of facts.
        """
        if action == "ignore":
            return action
        if domain and action != "log":
            try:
                entry = self._excepts(domain)
            except UnavailableError as error:
                entry, action = None, self._unknown(action, error)
            if entry:
                action, reason = "log", f"{reason}, excepted: {entry}"
        finding = Finding(action, reason, *refusal, method=reason.partition("=")[0])
        (self.troubles if unknown and action in _DECISIVE else self.findings).append(finding)
        return action

    def _unknown(self, action: str, error: UnavailableError) -> str:
        """Note that it is unknown whether an action applies; return that in place of it."""
        self._trouble([action], str(error), "3.0")
        return "log"

    def _trouble(self, actions: Iterable[str], cause: str, detail: str) -> None:
        if any(each in _DECISIVE for each in actions):
            text = "Temporary failure of authentication, please try again later"
            self.troubles.append(Finding("", cause, detail, text))

    def decision(self, on_error: str) -> Answer:
        """Return the decision; `on_error` is that on failed look-ups, by which nothing is known."""
        decided: Answer = PROCEED
        reasons = [each.reason for each in self.findings]
        if self.findings:
            strictest = max(self.findings, key=lambda each: each.strictness)
            decided = strictest.decision()
            if points_of(strictest.action):
                decided = Points(self._points())
        if self.troubles:
            reasons += [each.reason for each in self.troubles]
            if isinstance(decided, Proceed | Points):
                action = {"junk": "junk", "tempfail": "tempfail"}.get(on_error, "log")
                taken = [replace(each, action=each.action or action) for each in self.troubles]
                strictest = max(taken, key=lambda each: each.strictness)
                decided = strictest.decision() if strictest.action in _DECISIVE else decided
        return decided.because("; ".join(dict.fromkeys(reasons))) if reasons else decided

    def _points(self) -> float:
        """Return the sum of the points of all methods."""
        most: dict[str, float] = {}
        for each in self.findings:
            most[each.method] = max(most.get(each.method, 0), points_of(each.action))
        return sum(most.values())
