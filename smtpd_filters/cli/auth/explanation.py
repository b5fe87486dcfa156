"""The findings of filter-auth on a message as plain data: the JSON of `smtpd-filters auth`.

Texts come from the message and the DNS; bytes that aren't UTF-8 are escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_filters.authentication.dmarc.walk import questions
from smtpd_filters.lookups.outcome import MX, Found, NotFound, Unavailable
from smtpd_filters.protocol.decisions import Points

if TYPE_CHECKING:
    from smtpd_filters.authentication import dmarc, spf
    from smtpd_filters.authentication.dkim.driver import Verified
    from smtpd_filters.authentication.dkim.signatures import Signature
    from smtpd_filters.filters.auth.evidence import Evidence
    from smtpd_filters.filters.auth.judgement import Judgement
    from smtpd_filters.lookups.outcome import Outcome

    from .examination import Examined

    Answers = dict[tuple[str, str], Outcome[Any]]

#: Records of an answer that are shown.
_SHOWN = 10


def explain(found: Examined) -> dict[str, Any]:
    """Return the description of an examined message.

    `uncertain` tells whether a look-up failed on which a result depends.
    """
    arrival = found.arrival
    decision = found.decision
    name, confirmed = found.reverse
    described: dict[str, Any] = {
        "client": {
            "address": arrival.client,
            "name": name,
            "confirmed": confirmed,
            "helo": arrival.helo,
            "mail-from": arrival.sender,
        },
        "exempt": found.exempt,
    }
    results: list[str] = []
    if found.evidence is not None and found.judgement is not None:
        described |= _evidence(found.evidence, found.judgement, found.answers)
        results = _results(found.evidence)
    described["decision"] = {
        "result": decision.verb,
        "reason": decision.reason,
        "reply": decision.text,
        "points": decision.points if isinstance(decision, Points) else 0,
    }
    described["fields"] = [line.decode("utf-8", "backslashreplace") for line in found.fields]
    described["uncertain"] = "temperror" in results
    return described


def _results(evidence: Evidence) -> list[str]:
    """Return all results: words of RFC 8601."""
    found = [each.result for each in (evidence.helo, evidence.mail) if each is not None]
    found += [each.result for each in evidence.verified.signatures]
    found += [each.result for each in evidence.verdicts]
    if evidence.verified.arc.temporary:
        found.append("temperror")
    return found


def _evidence(evidence: Evidence, judgement: Judgement, answers: Answers) -> dict[str, Any]:
    identities = [("helo", evidence.helo)]
    if not evidence.null:
        identities.append(("mail-from", evidence.mail))
    return {
        "spf": [_spf(name, verdict) for name, verdict in identities if verdict is not None],
        "dkim": _dkim(evidence.verified, answers),
        "arc": _arc(evidence.verified, judgement),
        "dmarc": {
            "problem": evidence.authors.problem,
            "authors": [
                _author(verdict, evidence, judgement, answers) for verdict in evidence.verdicts
            ],
        },
        "findings": [
            {"action": each.action, "reason": each.reason}
            for each in (*judgement.findings, *judgement.troubles)
            if each.action
        ],
        "failures": [each.reason for each in judgement.troubles if not each.action],
    }


def _spf(identity: str, verdict: spf.Verdict) -> dict[str, Any]:
    trace = verdict.trace
    steps = trace.steps if trace else ()
    return {
        "identity": identity,
        "domain": verdict.domain,
        "result": verdict.result,
        "mechanism": verdict.mechanism,
        "problem": verdict.problem,
        "explanation": verdict.explanation,
        "look-ups": trace.lookups if trace else 0,
        "void-look-ups": trace.voids if trace else 0,
        "steps": [
            {
                "depth": each.depth,
                "domain": each.domain,
                "term" if each.depth % 2 else "record": each.text,
                "outcome": each.outcome,
                "answers": [
                    {"name": str(name), "type": rdtype, "answer": _answer(outcome)}
                    for (name, rdtype), outcome in each.answers
                ],
            }
            for each in steps
        ],
    }


def _dkim(verified: Verified, answers: Answers) -> dict[str, Any]:
    return {
        "not-verified": verified.left_out,
        "signatures": [_signature(each, answers) for each in verified.signatures],
    }


def _signature(signature: Signature, answers: Answers) -> dict[str, Any]:
    described: dict[str, Any] = {
        "result": signature.result,
        "reason": signature.reason,
        "domain": signature.domain,
        "selector": signature.selector,
        "identity": signature.identity,
        "algorithm": signature.algorithm,
        "b": signature.b,
    }
    if (tags := signature.tags) is not None:
        described |= {
            "canonicalization": f"{tags.header_form}/{tags.body_form}",
            "signed-fields": [name.decode("ascii") for name in tags.names],
            "body-length": tags.length,
            "time": tags.time,
            "expires": tags.expires,
            "key": _looked_up(tags.key_name, answers),
            "key-bits": signature.bits,
            "testing": signature.testing,
        }
    return described


def _arc(verified: Verified, judgement: Judgement) -> dict[str, Any]:
    arc = verified.arc
    return {
        "result": "temperror" if arc.temporary else arc.result,
        "reason": arc.reason,
        "oldest-pass": arc.oldest,
        "sets": [
            {
                "instance": each.instance,
                "domain": each.domain,
                "selector": each.selector,
                "trusted": judgement.trusts(each.domain),
                "results": _text(each.results),
            }
            for each in arc.sets
        ],
    }


def _author(
    verdict: dmarc.Verdict, evidence: Evidence, judgement: Judgement, answers: Answers
) -> dict[str, Any]:
    policy = verdict.policy
    record = policy.record
    return {
        "domain": policy.domain,
        "stated": policy.domain not in evidence.authors.readings,
        "walk": [_looked_up(name, answers) for name, _ in questions(policy.domain)],
        "record-of": policy.source,
        "organizational-domain": policy.organization,
        "requested": policy.requested if record else "",
        "testing": bool(record and record.testing),
        "identifiers": [
            {
                "method": each.method,
                "domain": each.domain,
                "result": each.result,
                "alignment": "strict" if record and record.is_strict(each.method) else "relaxed",
                "aligned": _is_aligned(each, verdict),
            }
            for each in evidence.identifiers()
            if each.domain
        ],
        "result": verdict.result,
        "problem": verdict.problem,
        "disposition": verdict.disposition,
        "overridden": policy.domain in judgement.overridden,
    }


def _is_aligned(identifier: dmarc.Identifier, verdict: dmarc.Verdict) -> bool | None:
    """Return whether an identifier that passed is aligned; None for another."""
    if identifier.result != "pass" or verdict.policy.record is None:
        return None
    return any(
        (each.method, each.domain) == (identifier.method, identifier.domain)
        for each in verdict.aligned
    )


def _looked_up(name: str, answers: Answers) -> dict[str, str]:
    outcome = answers.get((name, "TXT"))
    return {"name": name, "answer": "not looked up" if outcome is None else _answer(outcome)}


def _answer(outcome: Outcome[Any]) -> str:
    match outcome:
        case Found(records, _, gap):
            shown = [_record(each) for each in records[:_SHOWN]]
            if gap or len(records) > _SHOWN:
                shown.append("...")
            return ", ".join(shown)
        case NotFound(reason):
            return reason
        case Unavailable(cause):
            return f"failed: {cause}"


def _record(record: object) -> str:
    if isinstance(record, bytes):
        return '"' + record.decode("utf-8", "backslashreplace") + '"'
    if isinstance(record, MX):
        return f"{record.preference} {record.exchange}"
    return str(record)


def _text(text: str) -> str:
    """Return a text without surrogate escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
