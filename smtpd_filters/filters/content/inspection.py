"""The application of header checks to the fields of one message, and to those of its parts.

Invariants
----------
*In order*: the fields of the message come first, then those of the parts; REJECT and PASS end it.
*None missed*: where a check may refuse, fields that the reader can't reach are a refusal.
*Not kept*: the fields of parts are asked about while the message is read, however many there are.
"""

from __future__ import annotations

from smtpd_filters.protocol.decisions import Reject
from smtpd_filters.runtime.pace import paced

from .header_checks import EDITING, PASS, REJECT, Action, edited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.message import Headers
    from smtpd_filters.mime.content import FieldSeen
    from smtpd_filters.runtime.log import FilterLog
    from smtpd_filters.session import Session

    from .header_checks import Checks

#: Lines in the log about checks of one message, which a client could multiply.
LOGGED_MAX = 20
#: The reply to a message whose attachments or fields are beyond the limits of `smtpd_filters.mime`.
TOO_COMPLEX = "550 5.7.1 Message is too complex to be checked for attachments"
_MIME = ("content-", "mime-version")
_MIME_BYTES = tuple(name.encode() for name in _MIME)
#: Bytes of a field that hold its name, to tell which checks apply to it.
_NAME = 64


class Inspection:
    """The checks of one message: those of its fields, of MIME fields, and of attached messages."""

    def __init__(
        self,
        checks: tuple[Checks, Checks, Checks],
        log: FilterLog,
        session: Session,
        *,
        log_only: bool,
    ) -> None:
        self._own, self._mime, self._nested = checks
        self._log = log
        self._session = session
        self._log_only = log_only
        #: The decision, once there is one.
        self.refusal: Reject | None = None
        self._passed = False
        #: What to do with fields of the message, by place.
        self._edits: dict[int, Action] = {}
        self._logged = 0

    @property
    def asks_of_parts(self) -> bool:
        """Whether the fields of parts matter."""
        return bool(self._mime or self._nested) and not self._passed

    async def ask_own(self, headers: Headers) -> None:
        """Ask about the fields of the message."""
        if not (self._own or self._mime):
            return
        for place, field in enumerate(headers):
            checks = self._mime if field.key.startswith(_MIME) else self._own
            await self._ask(place, checks, b"\n".join(field.lines))
            if self._passed or self.refusal is not None:
                break

    async def ask_of_part(self, seen: FieldSeen) -> None:
        """Ask about a field of a part or an attached message."""
        is_mime = not seen.nested or seen.raw[:_NAME].lower().startswith(_MIME_BYTES)
        await self._ask(-1, self._mime if is_mime else self._nested, seen.raw)

    async def _ask(self, place: int, checks: Checks, raw: bytes) -> None:
        if not checks or self._passed or self.refusal is not None:
            return
        action = await paced(checks.actions_on(raw))
        if action is None:
            return
        if action.name == REJECT and not self._log_only:
            self.refusal = action.refusal()
            return
        self._logged += 1
        if self._logged <= LOGGED_MAX:
            self._note(action, raw, in_part=place < 0)
        if action.name == PASS:
            self._passed = True
        elif place >= 0:
            self._edits[place] = action

    def end(self, *, cut: str) -> Reject | None:
        """End the checks; return the decision if there is one.

        `cut` is why something of the message was not read, fields of parts perhaps; or "".
        """
        may_refuse = REJECT in (self._mime.actions | self._nested.actions)
        if cut and may_refuse and not self._passed and self.refusal is None:
            if self._log_only:
                self._log.event("check", self._session, text=cut, would=REJECT.lower())
            else:
                self.refusal = Reject(TOO_COMPLEX).because(cut)
        if self._logged > LOGGED_MAX and self.refusal is None:
            number = self._logged - LOGGED_MAX
            self._log.event("further checks apply", self._session, number=number)
        return self.refusal

    async def edit(self, headers: Headers) -> None:
        """Edit the fields of the message."""
        if self._edits and not self._log_only:
            headers.replace_lines(await paced(edited(headers.lines(), self._edits)))

    def _note(self, action: Action, raw: bytes, *, in_part: bool) -> None:
        name = action.name.lower()
        event = "check" if self._log_only else name
        if in_part and action.name in EDITING:
            event = "not done in a part"
        self._log.event(
            event,
            self._session,
            check=action.place,
            text=action.text[:200],
            field=raw[:200].decode("utf-8", "replace").replace("\n", " "),
            would="" if event == name else name,
        )
