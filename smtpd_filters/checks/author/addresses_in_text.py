"""A finder of everything in a text that a reader would take for a mail address.

There is an address wherever an `@` has letters or digits to its right. The domain ends after its
last letter or digit (RFC 5321 section 4.1.2, RFC 5892), so that punctuation attached to it doesn't
hide it. Punctuation before the local part may belong to it (`_jane`) or not (`'boss`); both
readings are returned.

Invariants
----------
*Total*: no text raises an exception.
*Linear*: the time is proportional to the length of the text.
"""

from __future__ import annotations

import re

from smtpd_filters.addresses.domains import invisible
from smtpd_filters.addresses.mailbox import unquoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# The maximum of names considered that end at white space or an empty label within a domain.
_GAPS_MAX = 8

# A quoted string; or a quoted pair, in which a quote doesn't begin a string.
_QUOTED_OR_PAIR = re.compile(r'\\.|"(?:[^"\\]|\\.)*+"', re.DOTALL)
_IN_ATOM = r"""[^\s\x00-\x20\x7f."\\()<>,;:@\[\]]"""
_LAST_AT = re.compile("@(?!@)")
# To the right of an `@`: a literal; or atoms, perhaps after punctuation, with white space around
# the dots as in obs-domain (RFC 5322 section 4.4), and dots in a row, which programs may ignore.
_AFTER = re.compile(
    rf"""\s*+(?:(\[(?:[0-9.]++|[A-Za-z0-9-]*+:[0-9A-Za-z:.]++)\])|["\\()<>\[\],;:.]*+"""
    rf"""({_IN_ATOM}++(?:\s*+\.[\s.]*+{_IN_ATOM}++)*))"""
)
_GAP = re.compile(r"\s+\.\s*|\.[\s.]+")
_DOTS = re.compile(r"\.\.+")
_SPACE = re.compile(r"\s+")
# To the left of an `@`, in reverse: atoms, perhaps after punctuation.
_BEFORE = re.compile(r"""["\\)>\]\s]*+([^\s\x00-\x20\x7f"\\()<>,;:@\[\]]*+)""")
# A local part from its first to its last letter or digit.
_WITHOUT_MARKS = re.compile(r"[\W_]*+(.*[^\W_])[\W_]*+", re.DOTALL)
# Punctuation beyond ASCII: allowed in local parts by RFC 6532, but no reader takes it for a part.
_UP_TO_LAST_MARK = re.compile(r"(?:.*[^\x00-\x7f\w\u0300-\u036f\udc80-\udcff])?", re.DOTALL)
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]++)*(?<!-)")
_PLAIN_DOMAIN = re.compile(r"[^A-Za-z0-9_]*+([A-Za-z0-9_.-]*+)")
_BETWEEN_LETTERS = dict.fromkeys(map(ord, "-_."))
# RFC 5892 appendix A: characters within U-labels that are not letters.
_JOINING = "\u00b7\u0375\u05f3\u05f4\u200c\u200d\u30fb"
_IN_LABELS = frozenset(f"-_.{_JOINING}")
_JOINED = re.compile(f"[_{_JOINING}]")
# Parts of letters, letters newer than this Python, and non-UTF-8 bytes, which may be letters.
_LETTERS = frozenset({"Mn", "Mc", "Co", "Cn", "Cs"})

# A part of NFKC. NFKC itself is applied to domains, which are short, rather than to whole texts.
_LIKE_AT_OR_DOT = {
    **dict.fromkeys((0xFF20, 0xFE6B), "@"),
    **dict.fromkeys((0xFF0E, 0x3002, 0xFF61, 0xFE52, 0x2024), "."),
}
# ISO 2022: the sequences that switch character sets, which are not displayed.
_SHIFTS = re.compile(r"\x1b[\x20-\x2f]*+[\x30-\x7e]")


class Sighting:
    """An address in a text.

    `local_parts` are the readings of its local part, the literal one first. `domain` is the domain
    up to the first white space or empty label; `whole` goes on if a dot joins the parts. `domains`
    are these two and all other readings of the domain.
    """

    __slots__ = ("domain", "domains", "local_parts", "whole")

    def __init__(self, local_parts: tuple[str, ...], domain: str, whole: str, *others: str) -> None:
        self.local_parts = local_parts
        self.domain = domain
        self.whole = whole
        self.domains = (whole, *others) if whole == domain else (whole, domain, *others)


def sightings(text: str, *, quoting: bool) -> Iterator[Sighting]:
    """Find everything in a text that looks like an address.

    With `quoting` the text has the syntax of RFC 5322, where a quoted `@` doesn't count and a local
    part may be quoted. Otherwise it is displayed text.
    """
    text = _as_seen(text)
    if "@" not in text:
        return
    quoted: dict[int, int] = {}

    def masked(match: re.Match[str]) -> str:
        if match[0][0] != '"':
            return match[0]
        quoted[match.end()] = match.start()
        return "_" * len(match[0])

    searched = _QUOTED_OR_PAIR.sub(masked, text) if quoting else text
    behind = 0
    for sign in _LAST_AT.finditer(searched):
        at, start = sign.start(), behind
        behind = at + 1
        after = _AFTER.match(searched, behind)
        if after is None:
            continue
        before = text[start:at]
        end = at - len(before) + len(before.rstrip())
        if end in quoted:
            local_parts: tuple[str, ...] = (unquoted(text[quoted[end] : end]),)
        else:
            local_parts = _local_parts(before)
        if after[1]:
            yield Sighting(local_parts, after[1], after[1])
        elif found := _domains(after[2]):
            yield Sighting(local_parts, *found)


def _as_seen(text: str) -> str:
    if "\x1b" in text:
        text = _SHIFTS.sub("", text)
    return text if text.isascii() else invisible(text.translate(_LIKE_AT_OR_DOT))


def _local_parts(before: str) -> tuple[str, ...]:
    """Return the readings of the text before an `@`."""
    match = _BEFORE.match(before[::-1])
    written = match[1][::-1] if match else ""
    if written.isalnum():
        return (written,)
    found = {written: None}
    mark = _UP_TO_LAST_MARK.match(written)
    for text in (written, written[mark.end() :] if mark else ""):
        if match := _WITHOUT_MARKS.fullmatch(text):
            found[match[1]] = None
    return tuple(found)


def _domains(written: str) -> tuple[str, ...]:
    """Return the readings of the domain that begins a text, as `Sighting` takes them, if any."""
    if _HOST.fullmatch(written):
        return written, written
    closed = _SPACE.sub("", written)
    whole = domain = _cut(closed)
    if not whole:
        return ()
    others = {closed.rstrip("."): None, whole.lstrip("_"): None, _JOINED.split(whole, 1)[0]: None}
    others[_DOTS.sub(".", whole)] = None
    gaps = [gap.start() for _, gap in zip(range(_GAPS_MAX), _GAP.finditer(written), strict=False)]
    names = [name for gap in gaps if (name := _cut(_SPACE.sub("", written[:gap])))]
    if names:
        domain = names[0]
    others.update(dict.fromkeys(names))
    return domain, whole, *(each for each in others if each not in {domain, whole, ""})


def _cut(text: str) -> str:
    """Return the domain in a text without the punctuation around it."""
    if text.isascii():
        match = _PLAIN_DOMAIN.match(text)
        return match[1].rstrip("-_.") if match else ""
    if text.translate(_BETWEEN_LETTERS).isalnum():
        return text.strip("-_.")
    from unicodedata import category  # rarely needed

    begin = None
    for at, char in enumerate(text):
        if char.isalnum() or char == "_" or category(char) in _LETTERS:
            begin = at if begin is None else begin
        elif begin is not None and char not in _IN_LABELS:
            text = text[:at]
            break
    return "" if begin is None else text[begin:].rstrip(f"-_.{_JOINING}")
