"""The bytes and bits of the milter protocol (libmilter's mfdef.h, by its manual)."""

from __future__ import annotations

# -- commands of the MTA -------------------------------------------------------------------

NEGOTIATE = b"O"
MACROS = b"D"
CONNECT = b"C"
HELO = b"H"
MAIL = b"M"
RCPT = b"R"
DATA = b"T"
UNKNOWN = b"U"
HEADER = b"L"
END_OF_HEADER = b"N"
BODY = b"B"
END_OF_BODY = b"E"
ABORT = b"A"
QUIT = b"Q"

#: The commands that are events: a milter may leave them out or not answer, but for the last.
EVENTS = (
    CONNECT, HELO, MAIL, RCPT, DATA, UNKNOWN, HEADER, END_OF_HEADER, BODY, END_OF_BODY,
)  # fmt: skip

# -- answers of a milter -------------------------------------------------------------------

CONTINUE = b"c"
ACCEPT = b"a"
REJECT = b"r"
TEMPFAIL = b"t"
DISCARD = b"d"
REPLY_CODE = b"y"
SKIP = b"s"
SHUTDOWN = b"4"
CONNECTION_FAILURE = b"f"
PROGRESS = b"p"
ADD_HEADER = b"h"
INSERT_HEADER = b"i"
CHANGE_HEADER = b"m"
REPLACE_BODY = b"b"
CHANGE_SENDER = b"e"
ADD_RECIPIENT = b"+"
ADD_RECIPIENT_WITH = b"2"
DELETE_RECIPIENT = b"-"
QUARANTINE = b"q"

#: Answers without a payload that end an event.
FINAL = frozenset({CONTINUE, ACCEPT, REJECT, TEMPFAIL, DISCARD, SKIP, SHUTDOWN, CONNECTION_FAILURE})
#: Edits of the header block.
HEADER_EDITS = frozenset({ADD_HEADER, INSERT_HEADER, CHANGE_HEADER})

# -- actions -------------------------------------------------------------------------------

ADDHDRS = 0x01
CHGBODY = 0x02
ADDRCPT = 0x04
DELRCPT = 0x08
CHGHDRS = 0x10
QUARANTINES = 0x20
CHGFROM = 0x40
ADDRCPT_PAR = 0x80
SETSYMLIST = 0x100
#: Actions that change a message, so that it has to be held until the end.
EDITS = ADDHDRS | CHGBODY | CHGHDRS | QUARANTINES
#: Actions that change an envelope.
ENVELOPE = ADDRCPT | DELRCPT | CHGFROM | ADDRCPT_PAR

# -- protocol bits -------------------------------------------------------------------------

NO_CONNECT, NO_HELO, NO_MAIL, NO_RCPT, NO_BODY, NO_HEADERS, NO_END_OF_HEADER = (
    0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40,
)  # fmt: skip
NR_HEADERS = 0x80
NO_UNKNOWN, NO_DATA, MAY_SKIP, REFUSED_RCPT = 0x100, 0x200, 0x400, 0x800
NR_CONNECT, NR_HELO, NR_MAIL, NR_RCPT, NR_DATA, NR_UNKNOWN, NR_END_OF_HEADER, NR_BODY = (
    0x1000, 0x2000, 0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000,
)  # fmt: skip
LEADING_SPACE = 0x100000

#: The bit that leaves an event out, and the one that takes its reply away. The end of the body is
#: always sent and always answered.
OMITTED = {
    CONNECT: NO_CONNECT,
    HELO: NO_HELO,
    MAIL: NO_MAIL,
    RCPT: NO_RCPT,
    DATA: NO_DATA,
    UNKNOWN: NO_UNKNOWN,
    HEADER: NO_HEADERS,
    END_OF_HEADER: NO_END_OF_HEADER,
    BODY: NO_BODY,
}
UNANSWERED = {
    CONNECT: NR_CONNECT,
    HELO: NR_HELO,
    MAIL: NR_MAIL,
    RCPT: NR_RCPT,
    DATA: NR_DATA,
    UNKNOWN: NR_UNKNOWN,
    HEADER: NR_HEADERS,
    END_OF_HEADER: NR_END_OF_HEADER,
    BODY: NR_BODY,
}

# -- versions ------------------------------------------------------------------------------

OLDEST, NEWEST = 2, 6
#: The actions and the protocol bits that exist in each version. There is no public version 5.
ACTIONS_OF = {2: 0x3F, 3: 0x3F, 4: 0x3F, 5: 0x3F, 6: 0x1FF}
PROTOCOL_OF = {2: 0x7F, 3: 0x17F, 4: 0x37F, 5: 0x37F, 6: 0x1FFFFF}
#: The first version that has an event.
SINCE = {UNKNOWN: 3, DATA: 4}

# -- sizes ---------------------------------------------------------------------------------

#: Bytes of payload that libmilter takes; one more, and it resets the connection.
MAX_PAYLOAD = 65535

# -- macros --------------------------------------------------------------------------------

#: The stages for which a milter may name macros, by the event that they precede.
STAGES = {CONNECT: 0, HELO: 1, MAIL: 2, RCPT: 3, DATA: 4, END_OF_BODY: 5, END_OF_HEADER: 6}
