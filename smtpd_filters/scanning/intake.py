"""The message as a scanner gets it: measured, complete, and read as it is sent.

Invariants
----------
*As delivered*: a message is scanned as it will be delivered, with From, To and Cc as smtpd
completes them after all filters, so that a scanner's signatures are valid there
(`smtpd_filters.message.completion`). A first line of an mbox file is left out. A CR in the header,
at which a scanner may take the header for ended, is replaced by a space, also for the recipient.
*In turn*: in a chain a message may be scanned while filters in front of this one scan it as well
(`Filter.scans`). So it is edited only after `Content.turn`, for the recipient too, and a scanner
scans it again if they have changed what its verdict is about.
*Bounded*: only a small message is in memory; a large one is read from the spool each time that it
is sent.
"""

from __future__ import annotations

import re
from functools import partial

from smtpd_filters.checks.exemptions import exempted
from smtpd_filters.message import Headers
from smtpd_filters.message.completion import complete
from smtpd_filters.message.obsolete import replace_stray_cr
from smtpd_filters.protocol.decisions import PROCEED, Proceed, Reject
from smtpd_filters.runtime.coroutines import is_before_turn, my_turn

from .edits import Edits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from smtpd_filters.checks.exemptions import Exempt
    from smtpd_filters.filter import Filter
    from smtpd_filters.message import Message
    from smtpd_filters.message.disguise import Name
    from smtpd_filters.session import Session

#: Bytes of a message that is sent at once; most mail is smaller.
SMALL = 64 << 10
# The first line of an mbox file, and what follows if that continues it. "From :" is a field in
# obsolete syntax: RFC 5322 section 4.5.2.
_MBOX = re.compile(rb"\nFrom (?![ \t]*:)[^\n]*+(\n[ \t])?")
#: Chunks that are read in a row, while all other sessions wait.
ROW = 16
# RFC 3463 section 3.4: X.3.4 is "Message too big for system"; since the failure is transient,
# another exchanger may accept the message.
TOO_LARGE = Reject("451 4.3.4 Message too large to be scanned, please try again later")
#: The same for good.
NEVER = Reject("552 5.3.4 Message too large to be scanned")
#: What may become of a larger message.
LARGER = ("skip", "tempfail", "reject")
_LARGER: dict[str, Proceed | Reject] = {"skip": PROCEED, "tempfail": TOO_LARGE, "reject": NEVER}


class Content:
    """A message to be scanned; `size` is its bytes, each line end counted as one (LF)."""

    __slots__ = ("_head", "_message", "_prepare", "_replaced", "_text", "_whole", "size")

    def __init__(  # noqa: PLR0913  # what `Intake.content` has found
        self,
        message: Message,
        text: bytes,
        head: bytes,
        size: int,
        whole: bytes | None,
        prepare: Callable[[Headers], None],
    ) -> None:
        self._message = message
        #: The header block as it is to be delivered, and as it is scanned.
        self._text, self._head = text, head
        self._replaced = message.replaced
        self._whole = whole
        self._prepare = prepare
        self.size = size

    async def turn(self, *, headers: bool = True) -> bool:
        """Wait for the filter's turn; return whether the message still is the one that was scanned.

        Without `headers` only the body counts.
        """
        if not await my_turn():
            return True
        self._prepare(self._message.headers)
        if self._replaced != self._message.replaced:
            return False
        return not headers or self._text == self._message.headers.text()

    def chunks(self) -> Iterator[bytes]:
        """Return the chunks of the message from its beginning; this can be called repeatedly."""
        if self._whole is not None:
            return iter((self._whole,))
        return self._message.iter_bytes(head=self._head)

    @property
    def body(self) -> bytes | Callable[[], Iterator[bytes]]:
        """The message if it is small, otherwise a function that returns its chunks."""
        return self.chunks if self._whole is None else self._whole


class Intake:
    """Decides whether a message is scanned: by its client (`exempt`) and its size.

    `max_size` is in bytes; `larger`, one of `LARGER`, is for messages above it. `own` are the names
    of the scanner's fields. `shown` returns the header block as the scanner gets it; both are texts
    of `Headers`.
    """

    __slots__ = ("_own", "_shown", "exempt", "max_size", "too_large")

    def __init__(
        self,
        exempt: Exempt,
        *,
        max_size: int,
        larger: str,
        own: Sequence[Name],
        shown: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._own = own
        self._shown = shown
        self.exempt = exempt
        self.max_size = max_size
        self.too_large = _LARGER[larger]

    async def content(
        self, filter_: Filter, session: Session, message: Message
    ) -> Content | Proceed | Reject:
        """Return the message to be scanned, completed, or the decision if it isn't.

        From one that is too large the client's own copies of the scanner's fields are removed.
        Raises SpoolError.
        """
        if why := self.exempt.reason(session):
            return exempted(filter_, why)
        headers = message.headers
        prepare = partial(_prepare, session.server_name)
        if is_before_turn():
            headers = Headers.of_text(headers.text())
        prepare(headers)
        text = headers.text()
        head = without_mbox_line(text)
        if self._shown is not None:
            head = self._shown(head)
        whole = message.small(head)
        if whole is None:
            size, whole = await _measure(message.iter_bytes(head=head))
        else:
            size = len(whole)
        if size > self.max_size:
            await my_turn()
            prepare(message.headers)
            await self.remove_forged(message)
            reason = f"not scanned: {size} bytes are more than --max-size"
            return self.too_large.because(reason)
        return Content(message, text, head, size, whole, prepare)

    async def remove_forged(self, message: Message) -> Edits:
        """Remove the client's own copies of the scanner's fields; return the edits for more."""
        edits = Edits(message.headers, lambda _: None)
        for name in self._own:
            await edits.remove_foreign(name)
        return edits


def _prepare(server_name: str | None, headers: Headers) -> None:
    """Edit a header block as it is to be delivered (*As delivered*)."""
    replace_stray_cr(headers)
    if server_name:
        complete(headers, server_name)


def without_mbox_line(text: bytes) -> bytes:
    """Return the text of a header block without the first line of an mbox file.

    A client may send that line (RFC 4155), and smtpd delivers it below its own Received field.
    There a scanner would parse it as the end of the header, and raise the score for every missing
    field. A line with continuation lines is no such line: a client could hide them from scanners.
    """
    found = _MBOX.search(text)
    if found is None or found[1]:
        return text
    return text[: found.start()] + text[found.end() :]


async def _measure(chunks: Iterator[bytes]) -> tuple[int, bytes | None]:
    """Return the size of a message in bytes, and the message itself if it is small."""
    size = 0
    parts: list[bytes] = []
    for at, chunk in enumerate(chunks, 1):
        size += len(chunk)
        if size <= SMALL:
            parts.append(chunk)
        elif at % ROW == 0:
            from asyncio import sleep  # already loaded

            await sleep(0)
    return size, b"".join(parts) if size <= SMALL else None
