"""The text that programs show of HTML, without its tags, comments, styles and scripts.

Styles aren't applied: a text that they hide is in it. Elements within a line are joined, as a
program shows them, and others separated.

Invariants
----------
*Lenient*: what a comment, a tag or a quote without an end would hide stays a text.
*Linear*: what is looked for and isn't there isn't looked for again.
"""

from __future__ import annotations

import re
from html import unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

#: Elements that begin a line of their own; and those that stand beside each other.
_LINE_TAGS = (
    "address article aside blockquote body br button caption center dd details dialog dir div dl "
    "dt fieldset figcaption figure footer form frameset h1 h2 h3 h4 h5 h6 head header hr html "
    "legend li listing main menu nav ol optgroup option p plaintext pre search section select "
    "summary table tbody textarea tfoot thead title tr ul xmp"
)
_LINES = frozenset(_LINE_TAGS.split())
_CELLS = frozenset({"td", "th", "img", "input", "object", "video", "audio", "iframe"})
#: Elements whose content is not shown.
_HIDDEN = ("script", "style")
# WHATWG, HTML, section "tag open state": only these begin a tag.
_TAG = re.compile(r"</?([a-zA-Z][^\s/><\"']{0,40})|<(!--)|<[!?/]")
_QUOTED = re.compile(r"[\"'>]")
_REFERENCE = re.compile(r"&(?:#([0-9]++|[xX][0-9a-fA-F]++)|[a-zA-Z][a-zA-Z0-9]{1,31});?")
#: Digits of a number with leading zeros; one that is longer is beyond Unicode.
_DIGITS = 32
#: Units of work for a tag or a quote, and characters that are searched for a tag in a step.
_STEP, PIECE = 3, 1 << 12
#: Units of work of a step of text, which may consist of character references.
_TEXT = 1 << 10
#: Characters of a reference and of the beginning of a tag, at most.
_LONGEST = 64
#: Characters that are searched for an end tag in a step, and in a unit of work.
_WINDOW, _SEARCHED = 1 << 15, 64
#: Quotes of a tag after which others have their turn.
_QUOTES = 500


class _Rest:
    """What is behind some place in a text; it knows what isn't there."""

    __slots__ = ("_missing", "_text", "_unquoted")

    def __init__(self, text: str) -> None:
        self._text = text
        self._missing: set[str] = set()
        #: Whether a `>` may still be outside of quotes.
        self._unquoted = True

    def find(self, wanted: str, at: int) -> int:
        """Return where the text behind the next one of these begins; 0 if there is none."""
        if wanted in self._missing:
            return 0
        found = self._text.find(wanted, at)
        if found < 0:
            self._missing.add(wanted)
            return 0
        return found + len(wanted)

    def find_end_of_tag(self, at: int) -> Generator[int, None, int]:
        """Do so for the end of a tag, whose quotes may hold a `>`."""
        plain = self.find(">", at)
        if not plain or not self._unquoted:
            return plain
        count = 0
        while match := _QUOTED.search(self._text, at):
            if match[0] == ">":
                return match.end()
            at = self.find(match[0], match.end()) or match.end()
            count += 1
            if count % _QUOTES == 0:
                yield _STEP * _QUOTES
        # It is so for all tags behind this one.
        self._unquoted = False
        return plain

    def find_end_tag(self, name: str, at: int) -> Generator[int, None, int]:
        """Return where the end tag of an element begins; `at` if it has none."""
        end = f"</{name}"
        if end in self._missing:
            return at
        pattern = re.compile(end, re.IGNORECASE)
        for begin in range(at, len(self._text), _WINDOW):
            if match := pattern.search(self._text, begin, begin + _WINDOW + len(end)):
                return match.start()
            yield _WINDOW // _SEARCHED
        self._missing.add(end)
        return at


def without_markup(text: str) -> Generator[int, None, str]:
    """Return what programs show of HTML; yield units of work (`runtime.pace`)."""
    rest = _Rest(text)
    found: list[str] = []
    at = work = 0
    while at < len(text):
        # In steps: a text may be one that has no tag, or consist of them.
        limit = at + PIECE
        match = _TAG.search(text, at, limit + _LONGEST)
        if work > _TEXT or match is None or match.start() >= limit:
            yield work + _TEXT
            work = 0
        if match is None or match.start() >= limit:
            limit = _whole(text, at, limit)
            found.append(_resolved(text[at:limit]))
            at = limit
            continue
        begin, end = match.span()
        found.append(_resolved(text[at:begin]))
        work += _STEP + (begin - at) // _STEP
        if match[2]:
            # By some programs a comment also ends in itself, as "<!-->", or nowhere.
            behind = rest.find("-->", begin + 2) or rest.find(">", end)
        else:
            behind = yield from rest.find_end_of_tag(end)
        if not behind:
            found.append(text[begin:end])
            at = end
            continue
        name = (match[1] or "").lower()
        found.append("\n" if name in _LINES else " " if name in _CELLS else "")
        opens = text[begin + 1] != "/"
        at = behind
        if opens and name in _HIDDEN:
            at = yield from rest.find_end_tag(name, behind)
    return "".join(found)


def _whole(text: str, at: int, limit: int) -> int:
    """Return the end of a piece that doesn't end within a character reference."""
    if limit >= len(text):
        return len(text)
    cut = text.rfind("&", max(at + 1, limit - _LONGEST), limit)
    return cut if cut > 0 else limit


def _resolved(text: str) -> str:
    """Return a text with characters in place of its character references."""
    return _REFERENCE.sub(_character, text) if "&" in text else text


def _character(match: re.Match[str]) -> str:
    return unescape(match[0]) if len(match[1] or "") <= _DIGITS else "\ufffd"
