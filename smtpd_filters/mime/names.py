"""Names of attachments: all readings of a name, in the form in which names are compared."""

from __future__ import annotations

import re
from unicodedata import category, normalize
from urllib.parse import unquote

from smtpd_filters.checks.author.encoded_words import decoded

from .limits import NAME, NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Controls, and characters without a shape of their own: marks of direction, joiners, hyphens.
_INVISIBLE = {"Cc", "Cf"}
_SPACES = re.compile(r"\s+")
#: Encoded words of a name that are decoded, the last ones: 40 hold a name of NAME characters.
_WORDS = 40
_ENDS = " .\t\"'"


def normalized(name: str) -> str:
    """Return a name in the form in which names are compared; "" if nothing is left of it.

    Compatibility characters are replaced (NFKC: a full-width dot is a dot), invisible ones removed;
    of a path only the last part stays; blanks and dots at the end don't count on Windows. The case
    is that of the name.
    """
    if not (name.isascii() and name.isprintable()):
        name = normalize("NFKC", name[-4 * NAME :])
        name = "".join(each for each in name if category(each) not in _INVISIBLE)
        name = name.replace("\u2044", "/").replace("\u2215", "/").replace("\u29f8", "/")
    name = name.replace("\\", "/").rstrip(" ./").rpartition("/")[2]
    return _SPACES.sub(" ", name).strip()[-NAME:].rstrip(_ENDS).lstrip("\"' ")


def readings(raw: str) -> Iterator[str]:
    """Yield the normalised readings of one name, of which some may be equal or empty.

    Encoded words are decoded in every way that a program may choose. A name with a NUL may end
    there; behind a colon is the name of a stream of the file on Windows. Browsers decode `%2E`, and
    some programs shorten a long name.
    """
    texts: tuple[str, ...] = (raw,)
    if "=?" in raw:
        if raw.count("=?") > _WORDS:
            raw = "=?" + "=?".join(raw.rsplit("=?", _WORDS)[1:])
        texts = (*decoded(raw), *decoded(_SPACES.sub("", raw)))
    for text in texts[:NAMES]:
        yield normalized(text)
        if "%" in text:
            yield normalized(unquote(text[-4 * NAME :], errors="surrogateescape"))
        if len(text) > NAME:
            yield normalized(text[:NAME])
        if "\0" in text:
            yield normalized(text.partition("\0")[0])
        if ":" in text:
            first, _, rest = text.rpartition("/")[2].rpartition("\\")[2].partition(":")
            yield normalized(first)
            yield normalized(rest.rpartition(":")[2])


def cost(name: str) -> int:
    """Return the units of work to find the readings of a name, at most."""
    each = 6 if not name.isascii() else 4 if "=?" in name else 0
    return 20 + each * len(name)


def all_readings(raw: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """Return the different readings of several names, and whether there were more than NAMES."""
    found: dict[str, None] = {}
    for each in raw:
        for name in readings(each):
            if name:
                found[name] = None
        if len(found) > NAMES:
            return tuple(found)[:NAMES], True
    return tuple(found), False


def extension(name: str) -> str:
    """Return what is behind the last dot of a normalised name, in lower case; "" without one."""
    _, dot, last = name.rpartition(".")
    return last.strip().lower() if dot else ""


def inner_extension(name: str) -> str:
    """Return the extension before the last one, in lower case; "" if there is none."""
    return extension(name.rpartition(".")[0].rstrip(" ."))
