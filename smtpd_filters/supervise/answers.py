"""The rules for a program's answer to a request: passed unchanged, made safe, or a fault.

Invariants
----------
*Survived*: smtpd survives each wire form that `check` returns, in the given phase.
*Meaning kept*: an answer made safe has the effect that the program meant.
"""

from __future__ import annotations

import re

from smtpd_filters.protocol.decisions import MAX_REPLY, reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.protocol.vocabulary import Phase

#: Octets of a rewritten parameter. smtpd passes on 5,000 and exits on 20,000; the longest that has
#: a use are credentials.
MAX_REWRITE = 5000

#: A reply that smtpd passes on: a code, a space, and a text that is not blank.
_REPLY = re.compile(rb"[45][0-9]{2} [\t -~\x80-\xff]*[!-~\x80-\xff][\t -~\x80-\xff]*")
_CODE = re.compile(rb"([45][0-9]{2})(?:[ -]|$)")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
#: The code of a reply that has none. smtpd itself would answer with 421.
_NO_CODE = 451


class FaultError(Exception):
    """A line that smtpd doesn't survive, or that shows that the program is confused."""


def check(phase: Phase, verb: bytes, parameter: bytes | None) -> bytes:
    """Return the decision to send, which is the program's own if that is safe.

    Raise FaultError for a decision that smtpd would exit on, or that would leave the session stuck.
    """
    if verb in (b"proceed", b"junk"):
        if parameter is not None:
            raise FaultError("decision with a parameter that it does not take")
        if verb == b"junk" and phase.name == "commit":
            raise FaultError("junk at commit")
        return verb
    if verb not in (b"reject", b"disconnect", b"rewrite", b"report"):
        raise FaultError("unknown decision")
    if parameter is None:
        raise FaultError("decision without its parameter")
    if verb == b"rewrite":
        return _rewrite(phase, parameter)
    if verb == b"report":
        # smtpd before 7.0 exits on it, later ones take its text for the client's parameter.
        return b"proceed"
    safe = _safe_reply(parameter)
    if verb == b"reject" and phase.name == "connect" and not safe.startswith(b"421 "):
        # The connection would stay open without a banner.
        verb = b"disconnect"
    return verb + b"|" + safe


def _rewrite(phase: Phase, parameter: bytes) -> bytes:
    if phase.name == "commit":
        raise FaultError("rewrite at commit")
    if _CONTROL.search(parameter):
        raise FaultError("rewrite with a control character")
    if len(parameter) > MAX_REWRITE:
        raise FaultError("rewrite that is too long")
    return b"rewrite|" + parameter


def _safe_reply(text: bytes) -> bytes:
    """Return a reply that smtpd passes on: the text itself, or its printable part with a code."""
    if len(text) <= MAX_REPLY and _REPLY.fullmatch(text):
        return text
    found = _CODE.match(text)
    code = int(found[1]) if found else _NO_CODE
    rest = text[4:] if found else text
    return reply(code, "", rest.decode("utf-8", "replace")).encode()
