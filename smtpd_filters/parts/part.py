"""The public description of the parts of a message, made of what the reader has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from smtpd_filters.mime.names import extension
from smtpd_filters.mime.signatures import GROUPS

from .dangerous import DANGEROUS
from .texts import Texts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from smtpd_filters.mime import content

_DANGEROUS_KINDS = GROUPS["dangerous"]
#: Units of work for a part or member, and for each of its names.
_FILE, _NAME = 5, 2


class Member(NamedTuple):
    """A file in an archive, or in an archive within that.

    `names` and `kind` are as in `Part`; `kind` is empty if only the archive's list was read.
    """

    names: tuple[str, ...]
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a message: a text, an attachment, an attached message, or a file within a text."""

    #: All names that some mail program shows of it, at most 40. Invisible characters, folders, and
    #: blanks and dots at the end are removed; bytes that are not UTF-8 are surrogate escapes.
    names: tuple[str, ...]
    #: The media types with which it is declared, in lower case: none, one, or several if programs
    #: disagree.
    types: tuple[str, ...]
    #: The character set that it declares, in lower case as the sender wrote it, such as
    #: `iso-8859-1`; empty without one. Python may not know it.
    charset: str = ""
    #: How its content is encoded: `base64`, `quoted-printable`, `x-uuencode`, or empty if it is
    #: as it is.
    encoding: str = ""
    #: The type by content, such as `exe`, `zip`, `pdf`, `text` or `data` (anything else): the kinds
    #: of the condition `content` in filter-content(8). Empty for a part without content.
    kind: str
    #: The bytes of its content, decoded; of an attached message with its parts.
    size: int
    #: Whether a mail program would offer it as a file rather than show it as the text.
    attached: bool
    #: Not empty if it is a program, a script, a link or a disk image, or an archive with one in it:
    #: the name of that file, or its kind if it has no name. filter-content(8) refuses such
    #: attachments by default.
    dangerous: str
    #: Some of `encrypted`, `macros`, `message` (an attached one) and `unreadable` (an archive with
    #: contents that were not read, even if their names were).
    traits: frozenset[str]
    #: The files in it, if it is an archive.
    members: tuple[Member, ...]
    #: The content of a text, decoded, if `read_parts` was to keep texts: one text, several where
    #: programs disagree about the character set, none if it is empty or no text. Bytes that are
    #: invalid become U+FFFD. HTML is as it was written.
    texts: tuple[str, ...] = ()
    #: What programs show of these: without invisible characters, and of HTML without tags,
    #: comments, scripts and styles, with characters in place of its references and the alternative
    #: texts of images. A text that styles hide is in it. Where programs may differ, there are
    #: further texts: HTML with all but its tags, and as it is written.
    shown: tuple[str, ...] = ()
    #: The digest of the decoded content in hexadecimal digits, if `read_parts` was to compute it;
    #: empty for an attached message that isn't encoded, whose parts have digests. Lines of content
    #: that isn't in base64 end in LF. In an `ambiguous` message programs may decode something else.
    digest: str = ""

    @property
    def name(self) -> str:
        """The first of its names, to show it; empty without one. To judge it, use `names`."""
        return self.names[0] if self.names else ""


class Parts:
    """The parts of a message in their order, those of attached messages included.

    It can be iterated over and has a length. A multipart is no part itself, except an encoded one,
    whose `types` are empty.
    """

    __slots__ = ("_parts", "cut", "oddities", "texts_cut")

    def __init__(
        self,
        parts: Iterable[Part],
        oddities: Iterable[str] = (),
        *,
        cut: bool = False,
        texts_cut: bool = False,
    ) -> None:
        self._parts = tuple(parts)
        #: Where mail programs would disagree about the message, or where a limit was reached: a
        #: text for each.
        self.oddities = tuple(oddities)
        #: Whether an attachment or a name may be missing here: beyond a limit, such as 1,000 parts
        #: and 20 levels, or since the message is a piece of one. An archive beyond its limits is
        #: among the `oddities` only.
        self.cut = cut
        #: Whether the texts are longer than `read_parts` was to keep.
        self.texts_cut = texts_cut

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def ambiguous(self) -> bool:
        """Whether there are `oddities`. The parts are those of all readings then."""
        return bool(self.oddities)


def described(found: content.Content, keep_texts: int = 0) -> Generator[int, None, Parts]:
    """Return the description of a message; yield units of work (`runtime.pace`).

    `keep_texts` is how many bytes of texts the scanner has kept at most.
    """
    parts = []
    texts = Texts(keep_texts)
    for part in found.parts:
        read = yield from texts.of(part)
        dangerous = yield from _dangerous(part)
        members = []
        for each in part.members:
            yield _FILE
            members.append(Member(each.names, each.kind))
        parts.append(
            Part(
                names=part.names,
                types=part.types,
                charset=part.charset,
                encoding=part.encoding,
                kind=part.kind,
                size=_size(part),
                digest="" if part.hash is None or _is_raw(part) else part.hash.hexdigest(),
                attached=part.attached,
                dangerous=dangerous,
                traits=frozenset(part.traits),
                members=tuple(members),
                texts=read[0],
                shown=read[1],
            )
        )
    return Parts(parts, found.oddities, cut=found.cut, texts_cut=found.kept_cut or texts.cut)


def _is_raw(part: content.Part) -> bool:
    """Return whether it is an attached message that did not have to be decoded."""
    return "message" in part.traits and not part.size


def _size(part: content.Part) -> int:
    return max(part.end - part.body, 0) if _is_raw(part) else part.size


def _dangerous(part: content.Part) -> Generator[int, None, str]:
    """Return the name or the kind of a dangerous file: the part or a member of it; or ""."""
    if not part.attached:
        return ""
    files: list[content.Part | content.Member] = [part, *part.members]
    for file in files:
        yield _FILE + _NAME * len(file.names)
        for name in file.names:
            if extension(name) in DANGEROUS:
                return name
        if file.kind in _DANGEROUS_KINDS:
            return file.names[0] if file.names else file.kind
    return ""
