"""Names of attachments: all readings of a name, in the form in which names are compared."""

from __future__ import annotations

import re
from unicodedata import category, normalize
from urllib.parse import unquote

from smtpd_filters.checks.author.encoded_words import decoded

from .limits import NAME, NAMES, PARAMETERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Controls, and characters without a shape of their own: marks of direction, joiners, hyphens.
_INVISIBLE = {"Cc", "Cf"}
_SPACES = re.compile(r"\s+")
_ENDS = " .\t\"'"


def normalized(name: str) -> str:
    """Return a name in the form in which names are compared; "" if nothing is left of it.

    Compatibility characters are replaced (NFKC: a full-width dot is a dot), invisible ones removed;
    of a path only the last part stays; blanks and dots at the end don't count on Windows. The case
    is that of the name.
    """
    if not (name.isascii() and name.isprintable()):
        # In blocks, since normalisation takes quadratic time; all of them, since what is at the end
        # of a name may not count.
        blocks = (name[at : at + NAME] for at in range(0, len(name), NAME))
        name = "".join(normalize("NFKC", each) for each in blocks)
        name = "".join(each for each in name if category(each) not in _INVISIBLE)
        name = name.replace("\u2044", "/").replace("\u2215", "/").replace("\u29f8", "/")
    name = name.replace("\\", "/").rstrip(" ./").rpartition("/")[2]
    return _SPACES.sub(" ", name).strip()[-NAME:].rstrip(_ENDS).lstrip("\"' ")


def readings(raw: str) -> Iterator[str]:
    """Yield the normalised readings of one name, of which some may be equal or empty.

    Encoded words are decoded in every way that a program may choose. A name with a NUL may end
    there; behind a colon is the name of a stream of the file on Windows. Browsers decode `%2E`, and
    some programs shorten a long name. Of a name of more than PARAMETERS characters, which is not
    one in a field, only the last ones are read.
    """
    if len(raw) > PARAMETERS:
        raw = raw.rstrip(_ENDS)[-PARAMETERS:]
    texts: tuple[str, ...] = (raw,)
    if "=?" in raw:
        texts = (*decoded(raw), *decoded(_SPACES.sub("", raw)))
    for text in texts[:NAMES]:
        yield normalized(text)
        if "%" in text:
            yield normalized(unquote(text, errors="surrogateescape"))
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
    """Return the different readings of several names, and whether there may be others.

    There may if there are more than NAMES, or if a name has more than PARAMETERS characters.
    """
    found: dict[str, None] = {}
    more = False
    for each in raw:
        more = more or len(each) > PARAMETERS
        for name in readings(each):
            if name:
                found[name] = None
        if len(found) > NAMES:
            return tuple(found)[:NAMES], True
    return tuple(found), more


def extension(name: str) -> str:
    """Return what is behind the last dot of a normalised name, in lower case; "" without one."""
    _, dot, last = name.rpartition(".")
    return last.strip().lower() if dot else ""


def inner_extension(name: str) -> str:
    """Return the extension before the last one, in lower case; "" if there is none."""
    return extension(name.rpartition(".")[0].rstrip(" ."))
