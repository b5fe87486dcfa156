"""Privacy at submission: fields that tell about the user's computer, network and programs.

Invariants
----------
*Users only*: the caller applies it to the mail of users, never to mail from elsewhere, whose
signatures it would break.
*Not smtpd's own*: the first Received field is smtpd's, and stays; `mask-src` in smtpd.conf keeps
the client's address out of it.
"""

from __future__ import annotations

from smtpd_filters.message.folding import field_lines
from smtpd_filters.settings import Kind
from smtpd_filters.settings.quoting import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.message import Headers

RECEIVED = "received"
#: Fields of mail programs, web mail and scripts that name a host, an address or a program.
FIELDS = (
    "User-Agent",
    "X-Mailer",
    "X-MimeOLE",
    "X-Newsreader",
    "X-Enigmail",
    "X-Originating-IP",
    "X-Originating-Client",
    "X-Originating-Email",
    "X-Sender",
    "X-Sender-IP",
    "X-Client-IP",
    "X-Client-Host",
    "X-Real-IP",
    "X-Source-IP",
    "X-Forwarded-For",
    "X-Remote-Addr",
    "X-HTTP-Posting-URI",
    "X-HTTP-UserAgent",
    "X-PHP-Originating-Script",
    "X-PHP-Script",
    "X-Apple-Mail-Remote-Attachments",
    "X-Apple-Base-URL",
    "X-Apple-Auto-Saved",
    "X-Universally-Unique-Identifier",
    "X-Uniform-Type-Identifier",
    "X-Identity-Key",
    "X-Account-Key",
    "X-Mozilla-Draft-Info",
    "X-MS-Exchange-Organization-AuthSource",
)


class Privacy:
    """What is removed and replaced: names of fields, and fields by name."""

    def __init__(
        self,
        also: Iterable[str] = (),
        keep: Iterable[str] = (),
        replace: Iterable[tuple[str, str]] = (),
    ) -> None:
        kept = {each.lower() for each in keep}
        self._received = RECEIVED not in kept
        self._version = "mime-version" not in kept
        self._replaced = tuple(replace)
        own = {name.lower() for name, _ in self._replaced}
        self._removed = tuple(
            name for name in (*FIELDS, *also) if name.lower() not in kept | own | {RECEIVED}
        )

    def apply(self, headers: Headers) -> list[str]:
        """Remove and replace fields; return the names of those that were there."""
        changed = [name for name in self._removed if headers.remove(name)]
        if self._received and (count := sum(1 for _ in headers.each(RECEIVED))) > 1:
            headers.remove(RECEIVED, range(2, count + 1))
            changed.append("Received")
        for name, value in self._replaced:
            if name in headers:
                headers.replace(name, value)
                changed.append(name)
        if self._version and "(" in (version := headers.get("MIME-Version", "")):
            headers.replace("MIME-Version", version.partition("(")[0].rstrip() or "1.0")
            changed.append("MIME-Version")
        return changed


class _Name(Kind[str]):
    metavar = "FIELD"
    noun = "the name of a field"

    def parse(self, text: str) -> str:
        try:
            field_lines(text, "")
        except ValueError:
            raise ValueError(f"expected {self.noun}, not {quote(text)}") from None
        return text


class _Replacement(Kind[tuple[str, str]]):
    metavar = "FIELD:TEXT"
    noun = 'a field such as "User-Agent: mail"'

    def parse(self, text: str) -> tuple[str, str]:
        name, colon, value = text.partition(":")
        try:
            field_lines(name.strip(), value.strip())
        except ValueError:
            colon = ""
        if not colon or not value.strip() or "\n" in text:
            raise ValueError(f"expected {self.noun}, not {quote(text)}")
        return name.strip(), value.strip()

    def show(self, value: tuple[str, str]) -> str:
        return ": ".join(value)


#: The kinds of the flags.
FIELD, REPLACEMENT = _Name(), _Replacement()
