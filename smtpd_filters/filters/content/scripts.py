"""Scripts of writing: which of them a text is in, by blocks of Unicode."""

from __future__ import annotations

import re
from html import unescape

from smtpd_filters.checks.author.encoded_words import decoded

#: The blocks of each script (Unicode 15, Blocks.txt), as in a set of a regular expression.
_BLOCKS = {
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff"
    "\u2c60-\u2c7f\ua720-\ua7ff",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "armenian": "\u0530-\u058f",
    "hebrew": "\u0590-\u05ff\ufb1d-\ufb4f",
    "arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "devanagari": "\u0900-\u097f\ua8e0-\ua8ff",
    "bengali": "\u0980-\u09ff",
    "tamil": "\u0b80-\u0bff",
    "thai": "\u0e00-\u0e7f",
    "georgian": "\u10a0-\u10ff\u1c90-\u1cbf\u2d00-\u2d2f",
    "hangul": "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff",
    "kana": "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "han": "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
}
SCRIPTS = frozenset(_BLOCKS)
_PATTERNS = {name: re.compile(f"[{blocks}]") for name, blocks in _BLOCKS.items()}
_TAGS = re.compile(r"<[^<>]*+>")
#: Letters below which a share says nothing.
LEAST = 20


def shares(data: bytes, charset: str) -> dict[str, float]:
    """Return the share of each script in the letters of a text, by the reading with most of it.

    A text with too few letters has none.
    """
    found: dict[str, float] = {}
    for text in as_texts(data, charset):
        for name, share in _shares(text).items():
            found[name] = max(share, found.get(name, 0.0))
    return found


def _shares(text: str) -> dict[str, float]:
    counts = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    total = sum(counts.values())
    if total < LEAST:
        return {}
    return {name: count / total for name, count in counts.items() if count}


def as_texts(data: bytes, charset: str) -> list[str]:
    """Decode the beginning of a text in a character set, in the ways of mail programs.

    Tags of HTML become blanks, and its character references letters.
    """
    return [unescape(_TAGS.sub(" ", each)) for each in _decoded(data, charset)]


def _decoded(data: bytes, charset: str) -> tuple[str, ...]:
    if charset in {"", "utf-8", "us-ascii", "ascii"}:
        return (data.decode("utf-8", "ignore"),)
    # Through the decoder of encoded words, which knows their names and trusts none of them.
    word = "".join(f"={byte:02X}" for byte in data)
    name = re.sub(r"[^a-z0-9_-]", "", charset)[:40]
    return decoded(f"=?{name}?Q?{word}?=")
