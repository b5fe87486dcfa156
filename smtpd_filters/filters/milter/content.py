"""The message on its way through several milters, and what each of them wants of it.

Invariants
----------
*In order*: each milter is sent the message with the edits of those before it.
*All or nothing*: edits are collected and applied after the final answer; a milter that fails or
refuses has changed nothing.
*One header*: a line that isn't a field ends the header for milters, and for the recipient as well:
an empty line is added, as by Postfix. A program that reads fields below it would show, for example,
a From that no milter has seen.
*Bounded*: the body is read from the spool in pieces as they are sent, a new one is spooled as it
arrives, and the protocol bounds the edits (`smtpd_filters.milter.Limits`).
"""

from __future__ import annotations

from smtpd_filters.message.completion import complete
from smtpd_filters.message.folding import field_lines
from smtpd_filters.message.obsolete import replace_stray_cr
from smtpd_filters.milter import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    EditedHeaders,
    InsertHeader,
    NewBody,
    Quarantine,
)
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.own_field import OwnField
from smtpd_filters.runtime.pace import pace
from smtpd_filters.scanning.outcomes import safe

from .facts import mailbox
from .gate import FailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_filters.message import Message
    from smtpd_filters.message.body import Body
    from smtpd_filters.milter import Edit
    from smtpd_filters.milter.answers import EnvelopeEdit, HeaderEdit

#: Units of work (`pace`) for an edit; and fields and bytes of the header block, bytes of a value,
#: and bytes of a new body, for one additional unit.
_EDIT, _FIELDS_PER_UNIT, _COPIED_PER_UNIT, _FOLDED_PER_UNIT, _BYTES_PER_UNIT = 20, 4, 1000, 2, 200
#: Notes that the log gets of one message.
NOTES = 8
#: The field with the reason for which a milter quarantines a message.
QUARANTINE = OwnField("X-Milter-Quarantine")


def fits(name: bytes, value: bytes) -> bool:
    """Return whether a field fits into a packet, with a null behind its name and its value."""
    return len(name) + len(value) + 2 <= v.MAX_PAYLOAD


def cut(name: bytes, value: bytes) -> bytes:
    """Return as much of a value as fits, up to the end of a line if possible."""
    room = v.MAX_PAYLOAD - len(name) - 2
    end = value.rfind(b"\n", 0, room + 1)
    return value[: end if end > 0 else room]


class Draft:
    """A message with the edits of the milters that have seen it.

    `host` is the name with which smtpd completes addresses, None if that is not known.
    """

    def __init__(self, message: Message, host: str | None) -> None:
        replace_stray_cr(message.headers)
        if host:
            complete(message.headers, host)
        QUARANTINE.remove(message.headers)
        self._message = message
        self.headers = EditedHeaders(message.headers.text(), field_lines)
        #: Notes about the message for the log.
        self.notes: list[str] = []
        if self.headers.rest:
            self.note("header ended before a line that is not a field")
        #: The reason for which it is to be held; None if it isn't.
        self.quarantine: str | None = None
        #: Whether a milter has changed the envelope; the recipients that were deleted and those
        #: that were added.
        self.envelope = False
        self._deleted: set[tuple[str, str]] = set()
        self._added: set[tuple[str, str]] = set()
        self._host = host

    def note(self, text: str) -> None:
        """Keep a note for the log."""
        if len(self.notes) < NOTES:
            self.notes.append(text)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body, with CRLF, in pieces that fit into a packet."""
        rest = b""
        for chunk in self._chunks():
            data = rest + chunk if rest else chunk
            whole = len(data) - len(data) % v.MAX_PAYLOAD
            for at in range(0, whole, v.MAX_PAYLOAD):
                yield data[at : at + v.MAX_PAYLOAD]
            rest = data[whole:]
        if rest:
            yield rest

    def _chunks(self) -> Iterator[bytes]:
        if self.headers.rest:
            # Lines without a field's name end the header, without an empty line.
            yield self.headers.rest[1:].replace(b"\n", b"\r\n") + b"\r\n\r\n"
        yield from self._message.body(crlf=True)

    async def edit(self, edit: HeaderEdit, *, leading_space: bool) -> None:
        """Apply an edit of the header; one with an invalid name is noted."""
        value = len(edit.value) // _FOLDED_PER_UNIT
        block = len(self.headers) // _FIELDS_PER_UNIT + self.headers.size // _COPIED_PER_UNIT
        await pace().admit(_EDIT + value + block)
        try:
            self.headers.apply(edit, leading_space=leading_space)
        except ValueError:
            self.note(f"not a header's name: {safe(edit.name, 80)!r}")

    def change_envelope(self, edit: EnvelopeEdit) -> None:
        """Note a change of the envelope, which smtpd takes from no filter."""
        self.envelope = True
        address = edit.address
        recipient = mailbox(address.decode("utf-8", "surrogateescape"), self._host)
        match edit:
            case ChangeSender():
                self.note(f"not possible: change sender to {safe(address, 80)}")
            case AddRecipient():
                self._added.add(recipient)
                self._deleted.discard(recipient)
                self.note(f"not possible: add recipient {safe(address, 80)}")
            case DeleteRecipient():
                self._deleted.add(recipient)
                self._added.discard(recipient)
                self.note(f"not possible: delete recipient {safe(address, 80)}")

    def leaves_none(self, recipients: Sequence[str]) -> bool:
        """Return whether all of the recipients were deleted, and no others added."""
        if not self._deleted or self._added:
            return False
        return all(mailbox(each, self._host) in self._deleted for each in recipients)

    def replace_body(self, body: Body) -> None:
        """Replace the body. Raises SpoolError."""
        self._message.replace_body(body)
        self.headers.drop_rest()

    def new_body(self) -> Body:
        """Return an empty body to write to."""
        return self._message.new_body()

    def hold(self) -> None:
        """Add the field with the reason for a quarantine."""
        reason = safe(self.quarantine or "")
        edit = AddHeader(QUARANTINE.name.encode(), reason.encode() or b"no reason given")
        self.headers.apply(edit, leading_space=False)

    async def store(self) -> None:
        """Write the edits of the header into the message, and end it where it ends for milters.

        Raises SpoolError.
        """
        headers = self.headers
        if headers.changed:
            self._message.headers.replace_text(headers.text())
        if headers.rest:
            admit = pace().admit
            for size in self._message.end_header(headers.rest):
                await admit(_EDIT + size // _BYTES_PER_UNIT)


class Wishes:
    """What one milter wants done to a message; `draft` is None if it was sent nothing of it."""

    def __init__(self, draft: Draft | None) -> None:
        self._draft = draft
        self._edits: list[HeaderEdit] = []
        self._envelope: list[EnvelopeEdit] = []
        self._body: Body | None = None
        self._quarantine: str | None = None

    async def take(self, edit: Edit) -> None:
        """Collect an edit. Raises FailedError if there is nothing to edit, and SpoolError."""
        draft = self._draft
        if draft is None:
            raise FailedError("it edits a message of which it wants nothing")
        work = _EDIT
        match edit:
            case NewBody(data):
                if self._body is None:
                    self._body = draft.new_body()
                self._body.write(data)
                work += len(data) // _BYTES_PER_UNIT
            case AddHeader() | InsertHeader() | ChangeHeader():
                self._edits.append(edit)
            case Quarantine(reason):
                self._quarantine = safe(reason)
            case _:
                self._envelope.append(edit)
        await pace().admit(work)

    async def apply(self, *, leading_space: bool) -> None:
        """Apply everything to the message. Raises SpoolError."""
        draft = self._draft
        if draft is None:
            return
        for edit in self._edits:
            await draft.edit(edit, leading_space=leading_space)
        if self._body is not None:
            body, self._body = self._body, None
            draft.replace_body(body)
        for change in self._envelope:
            draft.change_envelope(change)
        if self._quarantine is not None:
            draft.quarantine = self._quarantine

    def discard(self) -> None:
        """Release a new body that was not used."""
        if self._body is not None:
            self._body.discard()
            self._body = None
