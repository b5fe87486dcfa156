"""The checks of a decision: its form, its phase, its text."""

from __future__ import annotations

import re
from typing import Final

from .rules import NEEDS, UNFIT, WITH_PARAMETER

_NOOP_ARGUMENT_SINCE: Final = (7, 0)
_REPORT_SINCE: Final = (7, 0)
_REPLY_LIMIT: Final = 5_000

_REPLY: Final = re.compile(rb"[45][0-9][0-9] [^\0]")
# RFC 5321 section 4.2: a reply's text is HT and printable ASCII; smtpd also passes 8-bit bytes.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def is_decision(verb: bytes, parameter: bytes | None) -> bool:
    """Whether this is a decision; `parameter` is None if the line has no parameter."""
    if parameter is None:
        return verb in {b"proceed", b"junk"}
    return verb in WITH_PARAMETER


def faults(
    phase: bytes, verb: bytes, parameter: bytes, server: tuple[int, int] | None
) -> list[str]:
    """Return the rules that a decision breaks at this phase, for a server's version if known."""
    found = []
    if unfit := _unfit(phase, verb, parameter, server):
        found.append(unfit)
    if verb in {b"reject", b"disconnect"}:
        if not _REPLY.match(parameter):
            found.append("reply-no-code")
        if len(parameter) > _REPLY_LIMIT:
            found.append("reply-too-long")
    if _CONTROL.search(parameter):
        found.append("text-control")
    return found


def _unfit(
    phase: bytes, verb: bytes, parameter: bytes, server: tuple[int, int] | None
) -> str | None:
    unfit = UNFIT.get((verb, phase))
    if verb == b"report":
        known = server is not None and server >= _REPORT_SINCE
        return (unfit or "report-as-response") if known else "report-before-7"
    if verb == b"rewrite" and phase == b"noop":
        old = server is not None and server < _NOOP_ARGUMENT_SINCE
        return "rewrite-refused" if old else unfit
    if need := NEEDS.get((verb, phase)):
        pattern, rule = need
        return None if pattern.match(parameter) else rule
    return unfit
