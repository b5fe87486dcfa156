"""Refusals of an AUTH command whose parameter holds credentials, which smtpd would log.

smtpd logs each command that it or a filter refuses. It masks an AUTH command only while it decodes
the credentials itself, so a filter's refusal of one writes the client's password to the log, in
base64.

Invariants
----------
*Not logged*: an AUTH command with credentials is never refused, but gets a parameter with which it
fails (`SPOILT`): smtpd replies 501, checks no password, reports no `link-auth`, and logs
`AUTH PLAIN (...)`.
*Not authenticated*: after a refusal at `auth` the client is as unauthenticated as it was.
*Given later*: the refusal is the answer to the next MAIL FROM, and one that disconnects to the next
command that the filter has registered. If the client tries to authenticate again before, a
rejection is forgotten, since the filter is asked again; after one that disconnects it isn't asked.
"""

from __future__ import annotations

import re

from .decisions import Rewrite
from .vocabulary import PHASES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .vocabulary import Phase

AUTH, _MAIL_FROM, _QUIT = PHASES["auth"], PHASES["mail-from"], PHASES["quit"]
#: In place of a refusal: `*` is not base64, and a client's way to cancel (RFC 4954 section 4).
SPOILT = Rewrite("PLAIN *")
#: smtpd's reply to it, on 6.8 and 7.6.
SPOILT_REPLY = "501 5.5.2 Syntax error: Syntax error"
#: The phases that a filter must register with `auth`, so that a refusal can be given later. Not the
#: greetings: they would cost every session a round trip.
GIVEN_AT = ("mail-from", "rset", "noop")
#: Parameters without credentials; a mechanism that smtpd doesn't know may be one.
_BARE = frozenset({b"", b"PLAIN", b"LOGIN"})
_KNOWN = re.compile(rb"(PLAIN|LOGIN)(\s|$)", re.IGNORECASE)
_DISCONNECT, _REFUSALS, _REWRITE = b"disconnect|", (b"reject|", b"disconnect|"), b"rewrite|"


def holds_credentials(parameter: bytes) -> bool:
    """Return whether the parameter of an AUTH command may hold credentials."""
    return parameter.strip().upper() not in _BARE


def with_later_phases(phases: Iterable[str]) -> dict[str, None]:
    """Return the phases to register for these, in order."""
    wanted = dict.fromkeys(phases)
    if AUTH.name in wanted:
        wanted |= dict.fromkeys(GIVEN_AT)
    return wanted


class Refusals:
    """The refusals of AUTH commands with credentials, by session.

    A decision is here in the form in which it is sent, such as `reject|454 4.7.0 Later`. `due` and
    `answer` may be called again for a request, if there was no memory to send the answer.
    """

    def __init__(self) -> None:
        #: Sessions in whose last AUTH command the parameter holds credentials.
        self._asked: dict[bytes, None] = {}
        #: The refusals to be given.
        self.later: dict[bytes, bytes] = {}

    def due(self, phase: Phase, session: bytes, parameter: bytes) -> bytes:
        """Take note of a request; return the answer that is due, or empty if a filter decides."""
        secret = phase is AUTH and holds_credentials(parameter)
        later = self.later.get(session, b"")
        if later.startswith(_DISCONNECT) and phase is not _QUIT:
            return SPOILT.wire if secret else later
        if later and phase is _MAIL_FROM:
            return later
        if later and phase is AUTH:
            del self.later[session]
        if secret:
            self._asked[session] = None
        elif phase is AUTH:
            self._asked.pop(session, None)
        return b""

    def given(self, session: bytes) -> None:
        """Forget a rejection that has been sent; a disconnect is sent at each command."""
        if not self.later[session].startswith(_DISCONNECT):
            del self.later[session]

    def answer(self, phase: Phase, session: bytes, wire: bytes) -> bytes:
        """Return what to send for a filter's decision."""
        if phase is not AUTH or session not in self._asked:
            return wire
        if wire.startswith(_REFUSALS):
            self.later[session] = wire
            wire = SPOILT.wire
        elif wire.startswith(_REWRITE) and not _KNOWN.match(wire, len(_REWRITE)):
            wire = SPOILT.wire  # smtpd refuses an unknown mechanism, with 504
        return wire

    def forget(self, session: bytes) -> None:
        """Forget a session that has ended."""
        self._asked.pop(session, None)
        self.later.pop(session, None)
