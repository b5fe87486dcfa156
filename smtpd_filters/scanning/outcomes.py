"""The outcomes of a scan by name, and their replies.

An outcome is accept, header (fields that name the result, without a mark), junk (a mark by which
mail is filed as junk), tempfail or reject.
"""

from __future__ import annotations

from smtpd_filters.protocol.decisions import Reject, reply

#: The outcomes, in order of strictness.
OUTCOMES = ("accept", "header", "junk", "tempfail", "reject")
#: The codes of refusals. RFC 3463 section 3.8: X.7.1 is "Delivery not authorized, message refused".
CODES = {"reject": (554, "5.7.1"), "tempfail": (451, "4.7.1")}
#: What a change of the envelope is refused with. RFC 3463 section 3.4: X.3.5 is "System incorrectly
#: configured".
ENVELOPE = Reject(reply(451, "4.3.5", "The envelope of this message cannot be changed"))
#: Characters of a scanner's text in replies, fields and the log.
LONGEST = 200


def refusal(outcome: str, text: str) -> Reject:
    """Return the refusal for "reject" or "tempfail" with any text, which is made safe."""
    code, enhanced = CODES[outcome]
    return Reject(reply(code, enhanced, text))


def safe(text: bytes | str, longest: int = LONGEST) -> str:
    """Return a scanner's text as one line of printable ASCII of limited length.

    Any other character becomes `?`, and white space of any kind a single space.
    """
    if isinstance(text, bytes):
        text = text[: 4 * longest].decode("ascii", "replace")
    clean = " ".join(text[: 4 * longest].split())
    return "".join(c if " " <= c <= "~" else "?" for c in clean)[:longest].rstrip()
