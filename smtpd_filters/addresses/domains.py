"""The canonical form of domains and address literals, in which all spellings of one compare equal.

It is the form used in the DNS: lower case, no final dot, and the A-label (RFC 5890
section 2.3.2.1) of each label beyond ASCII. Letters are mapped as in UTS #46: NFKC, case folding,
every kind of full stop to a dot, invisible characters removed. `BÜCHER.example`, the same with a
combining diaeresis or in full-width letters, and `XN--BCHER-KVA.Example.` are all
`xn--bcher-kva.example`.

Address literals (RFC 5321 section 4.1.3) compare by their address: smtpd accepts
`[IPv6:2001:db8::1]` and `[192.0.2.1]` with and without the tag, and any spelling of zeros. An
IPv4-mapped IPv6 address becomes the IPv4 address.

IDNA 2003 and IDNA 2008 differ in four letters: `ß`, the final sigma, and the two joiners. IDNA
2003 replaced the first two by `ss` and a plain sigma and removed the joiners; IDNA 2008 keeps all
four, so `xn--fa-hia.de` (faß.de) and `fass.de` may have different owners. The canonical form is
that of IDNA 2008, which browsers and registries use today. Old mail programs still send mail for
`faß.de` to `fass.de`, so `readings` returns both. A check that protects a domain uses all readings
of the client's text; a check that grants something uses the canonical form alone.

Invariants
----------
*Total*: nothing here raises, whatever the text. Only letter case and final dots change in a text
that can't be a domain.
*Bounded*: normalisation and Punycode take quadratic time, so at most `_FOLD_MAX` characters are
normalised, and only labels that can fit are encoded. Everything else takes linear time.
*Cheap*: ASCII without `xn--` needs no import.
"""

from __future__ import annotations

import re
from functools import lru_cache

# RFC 1035 section 2.3.4: 63 octets a label, 255 octets a name, or 253 characters of text.
LABEL_MAX = 63
NAME_MAX = 253
# RFC 5890 section 2.3.2.1: the prefix of A-labels.
PREFIX = "xn--"

# Enough for any domain of 253 ASCII characters in Unicode, even decomposed (NFD has up to four
# characters for one).
_FOLD_MAX = 1024
# The characters that aren't displayed: Unicode's Default_Ignorable_Code_Point without the joiners,
# and the annotation marks. Compiled on first use, since compiling it takes long.
_INVISIBLE = (
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
# RFC 3490 section 3.1: U+3002 and U+FF61 are dots, and so is U+FF0E, which NFKC maps.
_DOTS = {0x3002: ".", 0xFF61: "."}
_KEPT = frozenset("ßẞς")
_KEPT_LETTER = "([ßẞς])"
_BY_IDNA_2003 = {ord("ß"): "ss", ord("ς"): "\u03c3", 0x200C: None, 0x200D: None}
# From the surrogate escape of a byte that isn't UTF-8 to its character in ISO 8859-1.
_BYTES = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}
_LITERAL_MAX = 64
_REMEMBERED = 128


def canonical(domain: str) -> str:
    """Return the canonical form of a domain or address literal."""
    if domain.isascii():
        name = domain.lower().rstrip(".")
        # An IPv4 literal has only one spelling.
        return (literal(name) or name) if name[:1] == "[" and ":" in name else name
    if len(domain) > _FOLD_MAX:
        return folded(domain).rstrip(".")
    return _converted(domain)


def readings(domain: str) -> tuple[str, ...]:
    """Return the canonical forms of all domains that some program may interpret this text as.

    The first is `canonical(domain)`. Further ones exist only beyond ASCII: the name by IDNA 2003,
    the name with invalid UTF-8 decoded as ISO 8859-1, and the name with A-labels decoded that no
    registry accepts, such as one with capital letters.
    """
    first = canonical(domain)
    if (domain.isascii() and PREFIX not in first) or len(domain) > _FOLD_MAX:
        return (first,)
    return _readings(domain)


def literal(domain: str) -> str:
    """Return the canonical form of an address literal, or "" if the text isn't one.

    The syntax is smtpd's: an IPv4 or IPv6 address in brackets, with or without `IPv6:` before it.
    """
    name = domain.lower()
    if name[:1] != "[" or name[-1:] != "]" or len(name) > _LITERAL_MAX or "%" in name:
        return ""
    from ipaddress import IPv4Address, IPv6Address  # rarely needed

    inner = name[1:-1].removeprefix("ipv6:")
    try:
        if ":" not in inner:
            return f"[{IPv4Address(inner)}]"
        address = IPv6Address(inner)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped
    return f"[{mapped}]" if mapped else f"[ipv6:{address.compressed}]"


def in_unicode(domain: str) -> str:
    """Return a domain with its A-labels decoded, for display; any other text unchanged."""
    name = domain.lower()
    if PREFIX not in name or not name.isascii() or len(name) > NAME_MAX:
        return domain
    return _in_unicode(name)


def folded(text: str) -> str:
    """Return a text as it is compared: NFKC, case-folded, without invisible characters.

    ASCII becomes lower case. `ß`, `ς` and the joiners stay, as in UTS #46. The function is
    idempotent. A text beyond ASCII of more than 1,024 characters only becomes lower case, since
    normalisation takes quadratic time.
    """
    if text.isascii():
        return text.lower()
    if len(text) > _FOLD_MAX:
        return text.translate(_DOTS).lower()
    from unicodedata import normalize  # rarely needed

    # Twice, since folding may undo normalisation, and normalisation folding.
    for _ in range(2):
        parts = (
            # `str.casefold` would map these letters as in IDNA 2003.
            {"ẞ": "ß"}.get(part, part)
            if part in _KEPT
            else re.sub(_INVISIBLE, "", normalize("NFKC", part)).translate(_DOTS).casefold()
            for part in re.split(_KEPT_LETTER, text)
        )
        text = normalize("NFKC", "".join(parts))
    return text


def invisible(text: str) -> str:
    """Return a text without invisible characters, joiners aside."""
    return text if text.isascii() else re.sub(_INVISIBLE, "", text)


# Converting a name can take milliseconds, and a message may contain the same name many times.
@lru_cache(maxsize=_REMEMBERED)
def _converted(domain: str) -> str:
    name = folded(domain).rstrip(".")
    if name.isascii():
        return canonical(name)
    if len(name) > NAME_MAX:
        return name
    return ".".join(label if label.isascii() else _encoded(label) for label in name.split("."))


@lru_cache(maxsize=_REMEMBERED)
def _readings(domain: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for text in (domain, domain.translate(_BYTES)):
        found[canonical(text)] = None
        found[canonical(_by_idna_2003(text))] = None
    for name in tuple(found):
        if PREFIX in name:
            found[canonical(in_unicode(name))] = None
    return tuple(found)


@lru_cache(maxsize=_REMEMBERED)
def _in_unicode(domain: str) -> str:
    return ".".join(map(_decoded, domain.split(".")))


def _by_idna_2003(domain: str) -> str:
    return folded(domain).translate(_BY_IDNA_2003)


def _encoded(label: str) -> str:
    """Return the A-label of a folded label, or the label itself if it has none."""
    if len(label) > LABEL_MAX - len(PREFIX):
        return label
    try:
        label.encode()  # raises for an escaped byte, which punycode would encode
        encoded = PREFIX + label.encode("punycode").decode("ascii")
    except UnicodeError:
        return label
    return encoded if len(encoded) <= LABEL_MAX else label


def _decoded(label: str) -> str:
    """Return an A-label decoded, valid or not, or unchanged if it can't be decoded."""
    if not label.startswith(PREFIX) or len(label) > LABEL_MAX:
        return label
    try:
        return label[len(PREFIX) :].encode("ascii").decode("punycode")
    except (ValueError, OverflowError, IndexError):
        return label
