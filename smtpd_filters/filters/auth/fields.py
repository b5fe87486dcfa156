"""The header fields that state the results of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.authentication.results import Result, write
from smtpd_filters.authentication.results.writer import value_of
from smtpd_filters.checks.exemptions import known_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_filters.authentication import dmarc, spf
    from smtpd_filters.authentication.dkim.driver import Verified
    from smtpd_filters.authentication.dkim.signatures import Signature
    from smtpd_filters.session import Session

    from .evidence import Evidence

RECEIVED_SPF = "Received-SPF"
SEALED = "ARC-Authentication-Results"
#: smtpd's words for the result of its own forward-confirmed look-up.
_IPREV = {"pass": "pass", "fail": "fail", "error": "temperror"}


def results(
    session: Session, evidence: Evidence, overridden: Sequence[str], *, sealed: bool = False
) -> list[Result]:
    """Return the results for a message.

    `overridden` are the author's domains whose policy a trusted sealer overrides. If they are
    `sealed`, a chain that can't be validated now has failed: RFC 8617 section 5.2.1, "All Failures
    Are Permanent".
    """
    found = [*envelope_results(session)]
    found += _spf(evidence)
    found += _dkim(evidence.verified)
    arc = evidence.verified.arc
    if arc.result != "none":
        address = known_address(session)
        properties = [("smtp.remote-ip", address)] if address else []
        if arc.oldest is not None:
            properties.insert(0, ("header.oldest-pass", str(arc.oldest)))
        # As Rspamd states it, so that a filter that seals doesn't seal the chain as failed.
        result = "temperror" if arc.temporary and not sealed else arc.result
        found.append(Result("arc", result, tuple(properties), reason=arc.reason))
    found += _dmarc(evidence, overridden)
    return found


def envelope_results(session: Session) -> Iterator[Result]:
    """Yield what smtpd itself has checked: the client's user, and its reverse name."""
    if session.username:
        yield Result("auth", "pass", (("smtp.auth", session.username),))
    elif (address := known_address(session)) and (result := _IPREV.get(session.fcrdns)):
        yield Result("iprev", result, (("policy.iprev", address),))


def _spf(evidence: Evidence) -> Iterator[Result]:
    for name, verdict in (("helo", evidence.helo), ("mailfrom", evidence.mail)):
        if verdict is None or (name == "mailfrom" and evidence.null):
            continue
        yield Result(
            "spf", verdict.result, ((f"smtp.{name}", verdict.domain),), reason=verdict.problem
        )


def _dkim(verified: Verified) -> Iterator[Result]:
    if not verified.signatures:
        yield Result("dkim", "none")
    for number, each in enumerate(verified.signatures):
        left_out = verified.left_out if not number else 0
        comment = f"{left_out} further signatures not verified" if left_out else ""
        yield Result("dkim", each.result, tuple(_tags(each)), each.reason, comment)


def _tags(signature: Signature) -> Iterator[tuple[str, str]]:
    """Yield the properties of a signature, those that it has."""
    for name, value in (
        ("header.d", signature.domain),
        ("header.i", signature.identity),
        ("header.s", signature.selector),
        ("header.a", signature.algorithm),
        ("header.b", signature.b),
    ):
        if value:
            yield name, value


def _dmarc(evidence: Evidence, overridden: Sequence[str]) -> Iterator[Result]:
    authors = evidence.authors
    if authors.problem:
        yield Result("dmarc", "permerror", reason=authors.problem)
    for verdict in evidence.verdicts:
        domain = verdict.policy.domain
        if domain in authors.readings and verdict.result != "fail":
            continue  # not the author's by a plain reading
        yield _dmarc_result(verdict, overridden=domain in overridden)


def _dmarc_result(verdict: dmarc.Verdict, *, overridden: bool) -> Result:
    policy = verdict.policy
    properties = [("header.from", policy.domain)]
    if policy.record is not None:
        disposition = "none" if overridden else verdict.disposition
        properties.append(("policy.dmarc", disposition))
    comment = "overridden by a trusted ARC sealer" if overridden else ""
    return Result("dmarc", verdict.result, tuple(properties), verdict.problem, comment)


def sealed(authserv_id: str, instance: int, found: Sequence[Result]) -> str:
    """Return the value of ARC-Authentication-Results (RFC 8617 section 4.1.1)."""
    return f"i={instance}; {write(authserv_id, found)}"


def received_spf(
    verdict: spf.Verdict, *, client: str, helo: str, sender: str, receiver: str
) -> str:
    """Return the value of Received-SPF (RFC 7208 section 9.1)."""
    pairs = {
        "client-ip": client,
        "envelope-from": sender,
        "helo": helo,
        "identity": "mailfrom" if sender else "helo",
        "mechanism": verdict.mechanism,
        "problem": verdict.problem,
        "receiver": receiver,
    }
    given = [f"{name}={value_of(value)}" for name, value in pairs.items() if value]
    return f"{verdict.result} " + ";\n\t".join(given)
