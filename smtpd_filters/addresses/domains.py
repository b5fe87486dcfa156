"""One form for each domain, so that two spellings of it compare equal.

The canonical form is the one of the DNS: lower case, no final dot, and for a label beyond ASCII
its A-label (RFC 5890 section 2.3.2.1). Letters are mapped first, as UTS #46 does: NFKC, case
folding, every full stop is a dot, what can't be seen is left out. ``BÜCHER.example``, the same
with a combining diaeresis or in full-width letters, and ``XN--BCHER-KVA.Example.`` are all
``xn--bcher-kva.example``.

**Address literals** (RFC 5321 section 4.1.3) are compared by the address that they stand for: smtpd
takes ``[IPv6:2001:db8::1]`` and ``[192.0.2.1]`` with the tag and without it, however zeros are
written. An IPv4-mapped IPv6 address is the IPv4 address.

**IDNA 2003 and IDNA 2008.** They differ in four letters: `ß`, the final sigma, and the two
joiners. IDNA 2003 wrote `ss` and a plain sigma and left the joiners out; IDNA 2008 keeps them, and
registries sell ``xn--fa-hia.de`` (faß.de) and ``fass.de`` to different people. The canonical form
is that of IDNA 2008, which browsers and registries use today. Old mail programs still send mail
for ``faß.de`` to ``fass.de``, so `readings` gives both. A check that guards a domain looks at all
readings of what a client says, one that grants something at the canonical form alone.

**Total**: nothing here raises, whatever the text; what can't be a domain stays as it is, but for
letter case and final dots.

**Bounded**: the time grows with the length of the text. Normalisation and Punycode are quadratic,
so no more than `_FOLD_MAX` characters are normalised, and only labels that can fit are encoded.

**Cheap**: ASCII without ``xn--`` needs no import.
"""

from __future__ import annotations

import re
from functools import lru_cache

# RFC 1035 section 2.3.4: 63 octets a label, 255 a name, which is 253 characters of text.
LABEL_MAX = 63
NAME_MAX = 253
# RFC 5890 section 2.3.2.1: what an A-label begins with.
PREFIX = "xn--"

# A domain of 253 ASCII characters has less than that in Unicode, even decomposed (NFD needs up to
# four characters for one).
_FOLD_MAX = 1024
# Unicode's Default_Ignorable_Code_Point without the joiners, and the annotation marks: nothing of
# them is seen. Compiled when it is used, which takes longer than for the others.
_INVISIBLE = (
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
# RFC 3490 section 3.1: U+3002 and U+FF61 are dots as well as U+FF0E, which NFKC maps.
_DOTS = {0x3002: ".", 0xFF61: "."}
_KEPT = frozenset("ßẞς")
_KEPT_LETTER = "([ßẞς])"
_BY_IDNA_2003 = {ord("ß"): "ss", ord("ς"): "\u03c3", 0x200C: None, 0x200D: None}
# A byte that is not UTF-8 is a surrogate escape: the letter that ISO 8859-1 has there.
_BYTES = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}
_LITERAL_MAX = 64
_REMEMBERED = 128


def canonical(domain: str) -> str:
    """Give the one form of a domain or address literal."""
    if domain.isascii():
        name = domain.lower().rstrip(".")
        # An IPv4 address has one spelling.
        return (literal(name) or name) if name[:1] == "[" and ":" in name else name
    if len(domain) > _FOLD_MAX:
        return folded(domain).rstrip(".")
    return _converted(domain)


def readings(domain: str) -> tuple[str, ...]:
    """Give the canonical forms of all domains that some program takes this text for.

    The first is `canonical(domain)`. There are more only beyond ASCII: the name by IDNA 2003, the
    name with bytes that are not UTF-8 read as ISO 8859-1, and what an A-label decodes to that no
    registry would sell, such as one with capitals in it.
    """
    first = canonical(domain)
    if (domain.isascii() and PREFIX not in first) or len(domain) > _FOLD_MAX:
        return (first,)
    return _readings(domain)


def literal(domain: str) -> str:
    """Return the canonical form of an address literal, and "" for anything else.

    It is what smtpd takes for one: an IPv4 or IPv6 address in brackets, either behind `IPv6:` or
    not.
    """
    name = domain.lower()
    if name[:1] != "[" or name[-1:] != "]" or len(name) > _LITERAL_MAX or "%" in name:
        return ""
    from ipaddress import IPv4Address, IPv6Address  # only for this

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
    """Give a domain with its A-labels decoded, as programs show it; others as they are."""
    name = domain.lower()
    if PREFIX not in name or not name.isascii() or len(name) > NAME_MAX:
        return domain
    return _in_unicode(name)


def folded(text: str) -> str:
    """Give a text in the letters that it is compared in: NFKC, no letter case, nothing invisible.

    ASCII is in lower case. `ß`, `ς` and the joiners stay, as in UTS #46. Applied twice, it changes
    nothing more.
    """
    if text.isascii():
        return text.lower()
    if len(text) > _FOLD_MAX:
        return text.translate(_DOTS).lower()
    from unicodedata import normalize  # only for this

    # Twice, since folding may leave what normalisation changes, and the other way round.
    for _ in range(2):
        parts = (
            # `str.casefold` maps these letters as IDNA 2003 does.
            {"ẞ": "ß"}.get(part, part)
            if part in _KEPT
            else re.sub(_INVISIBLE, "", normalize("NFKC", part)).translate(_DOTS).casefold()
            for part in re.split(_KEPT_LETTER, text)
        )
        text = normalize("NFKC", "".join(parts))
    return text


def invisible(text: str) -> str:
    """Give a text without the characters that can't be seen, joiners aside."""
    return text if text.isascii() else re.sub(_INVISIBLE, "", text)


# To convert a name takes up to some milliseconds, and a message may have it in many places.
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
    """The A-label of a label in canonical letters; unchanged if it has none."""
    if len(label) > LABEL_MAX - len(PREFIX):
        return label
    try:
        label.encode()  # a byte that is not UTF-8 is no letter
        encoded = PREFIX + label.encode("punycode").decode("ascii")
    except UnicodeError:
        return label
    return encoded if len(encoded) <= LABEL_MAX else label


def _decoded(label: str) -> str:
    """What an A-label stands for, valid or not; unchanged if it can't be decoded."""
    if not label.startswith(PREFIX) or len(label) > LABEL_MAX:
        return label
    try:
        return label[len(PREFIX) :].encode("ascii").decode("punycode")
    except (ValueError, OverflowError, IndexError):
        return label
