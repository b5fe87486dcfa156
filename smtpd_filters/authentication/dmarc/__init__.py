"""DMARC (RFC 9989): whether an author's domain is authenticated, and what its owner requests.

`discover` finds the policy of an author's domain and can run before the message has been received;
`align` compares it with the results of SPF and DKIM. Both walk the DNS tree (section 4.10); no list
of public suffixes is used.

Invariants
----------
*Aligned passes only*: the result is pass only if an identifier that passed is aligned.
*Failures are not facts*: the result is fail only if every look-up that could have changed it was
answered; otherwise it is temperror, and no policy applies. `Verdict.at_stake` is the policy that
would apply by the records that are known: who can make a look-up fail must not escape it unnoticed.
*Bounded*: a walk has at most `MAX_QUERIES` questions, all asked side by side, and an identifier
that can't be aligned has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smtpd_filters.addresses import canonical
from smtpd_filters.lookups.outcome import NODATA, NotFound, Unavailable

from .record import NOTHING, POLICIES, QUARANTINE, REJECT, Record, parse
from .walk import MAX_QUERIES, Walk, questions

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Literal

    from smtpd_filters.authentication.inquiry import Engine, Question
    from smtpd_filters.lookups.outcome import Outcome

__all__ = [
    "MAX_QUERIES",
    "NOTHING",
    "QUARANTINE",
    "REJECT",
    "Identifier",
    "Policy",
    "Record",
    "Verdict",
    "align",
    "discover",
    "evaluate",
    "organization",
    "parse",
]

#: RFC 9989 section 4.7: "t=y" requests one level below the policy.
_MILDER = {REJECT: QUARANTINE, QUARANTINE: NOTHING, NOTHING: NOTHING}


@dataclass(frozen=True, slots=True)
class Identifier:
    """A domain that SPF or DKIM checked, and the result.

    That of SPF is the domain of the MAIL FROM identity, or of HELO with the null sender; that of
    DKIM is the tag d= of a signature.
    """

    method: Literal["spf", "dkim"]
    domain: str
    result: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy for an author's domain.

    `record` is None if none applies, and `source` is the name that has it. `organization` is the
    Organizational Domain. `requested` is the owner's policy for this domain, none, quarantine or
    reject; `applied` is what is left of it in the owner's test mode (`t=y`). `failure` is the cause
    if a look-up of the policy failed: the others are then by the records that are known.
    `walk_failure` is the cause if the Organizational Domain is unknown.
    """

    domain: str
    record: Record | None = None
    source: str = ""
    organization: str = ""
    requested: str = NOTHING
    applied: str = NOTHING
    failure: str = ""
    walk_failure: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result for an author's domain.

    `result` is pass, fail, none (there is no policy) or temperror. `disposition` is what the owner
    requests for this message: the policy for a fail, otherwise none. `aligned` are the identifiers
    that passed and are aligned. `problem` is the cause of a temperror, and `at_stake` the policy
    that would then apply by the records that are known, if these don't align an identifier that
    passed.
    """

    result: str
    policy: Policy
    disposition: str = NOTHING
    aligned: tuple[Identifier, ...] = ()
    problem: str = ""
    at_stake: str = NOTHING


def evaluate(author: str, identifiers: Iterable[Identifier]) -> Engine[Verdict]:
    """Return the verdict on an author's domain: `discover`, then `align`."""
    policy = yield from discover(author)
    return (yield from align(policy, identifiers))


def discover(author: str) -> Engine[Policy]:
    """Find the policy for an author's domain (RFC 9989 section 4.10.1)."""
    domain = canonical(author)
    walk = Walk(domain, (yield questions(domain)))
    failure = "" if domain in walk.records else walk.failure
    organization = walk.organization
    for source in (domain, organization, walk.suffix):
        if record := walk.records.get(source):
            break
    else:
        return Policy(domain, organization=organization, failure=failure)
    exists: set[bool] = {True}
    if source != domain and record.np:
        # RFC 9989 section 4.7: "np" is for a domain that does not exist: NXDOMAIN for its name.
        outcome: Outcome[Any]
        (outcome,) = yield [(domain, "A")]
        if isinstance(outcome, Unavailable):
            failure = failure or outcome.cause
            exists = {True, False}
        else:
            exists = {not isinstance(outcome, NotFound) or outcome.reason == NODATA}
    possible = {record.requested(below=source != domain, exists=each) for each in exists}
    requested = max(possible, key=("", *POLICIES).index)
    if not requested:
        return Policy(domain, organization=organization, failure=failure)
    applied = _MILDER[requested] if record.testing else requested
    return Policy(domain, record, source, organization, requested, applied, failure, walk.failure)


def organization(name: str) -> Engine[str]:
    """Find the Organizational Domain of a canonical name, if a record says what it is.

    The result is "" if there is no record above the name, or if a look-up failed.
    """
    walk = Walk(name, (yield questions(name)))
    return "" if walk.failure or not walk.records else walk.organization


def align(policy: Policy, identifiers: Iterable[Identifier]) -> Engine[Verdict]:
    """Return the verdict for a policy and the results of SPF and DKIM.

    Identifiers whose result is neither pass nor temperror count for nothing.
    """
    record = policy.record
    if record is None:
        return Verdict("temperror" if policy.failure else "none", policy, problem=policy.failure)
    counted = [
        Identifier(each.method, canonical(each.domain), each.result)
        for each in identifiers
        if each.result in {"pass", "temperror"} and each.domain
    ]
    walks = yield from _walks(policy, record, counted)
    aligned: list[Identifier] = []
    problem = ""
    at_stake = policy.applied
    for each in counted:
        cause = _misalignment(each, policy, walks)
        if cause is None:
            continue
        if each.result == "temperror":
            cause = f"{each.method} of {each.domain}: temperror"
        elif not cause:
            aligned.append(each)
        elif walks[each.method, each.domain].organization == policy.organization:
            at_stake = NOTHING
        problem = problem or cause
    if aligned:
        # An unknown record would align the author's own domain as well; and an identifier that is
        # aligned for certain needs no look-up that failed.
        return Verdict("pass", policy, aligned=tuple(aligned))
    if problem := policy.failure or problem:
        return Verdict("temperror", policy, problem=problem, at_stake=at_stake)
    return Verdict("fail", policy, policy.applied)


def _misalignment(
    identifier: Identifier, policy: Policy, walks: dict[tuple[str, str], Walk]
) -> str | None:
    """Return "" for an aligned identifier, None for another, and the cause if it is unknown."""
    if identifier.domain == policy.domain:
        return ""
    walk = walks.get((identifier.method, identifier.domain))
    if walk is None:
        return None
    if cause := policy.walk_failure or walk.failure:
        return cause
    return "" if walk.organization == policy.organization else None


def _walks(
    policy: Policy, record: Record, identifiers: Iterable[Identifier]
) -> Engine[dict[tuple[str, str], Walk]]:
    """Walk from each identifier that may be aligned in relaxed mode, all side by side."""
    near = [
        (each.method, each.domain)
        for each in identifiers
        if not record.is_strict(each.method)
        and each.domain != policy.domain
        and _may_align(each.domain, policy)
    ]
    asked: dict[Question, None] = {}
    for _, domain in near:
        asked.update(dict.fromkeys(questions(domain)))
    if not asked:
        return {}
    outcomes = dict(zip(asked, (yield list(asked)), strict=True))
    return {
        (method, domain): Walk(domain, [outcomes[each] for each in questions(domain)])
        for method, domain in near
    }


def _may_align(domain: str, policy: Policy) -> bool:
    """Return whether a domain is the Organizational Domain of an author, or below it."""
    if policy.walk_failure:
        # It is not known: but it has a label in common with each of its domains.
        top = policy.domain.rpartition(".")[2]
        return domain == top or domain.endswith(f".{top}")
    return domain == policy.organization or domain.endswith(f".{policy.organization}")
