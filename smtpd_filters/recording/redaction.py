"""Masking of credentials in the lines of the protocol.

smtpd passes them to filters in the request `auth`, in reports of client commands, and in reports of
other filters' answers. Of the client's commands only known ones are shown: a client whose AUTH was
refused may still send user and password, which smtpd then reports as unknown commands.
"""

from __future__ import annotations

from smtpd_filters.protocol.credentials import SPOILT

#: The text that smtpd itself writes in place of a credential.
MASK = b"********"
#: The parameter of an AUTH command that a filter has refused.
_SPOILT = SPOILT.text.encode()
_MECHANISMS = frozenset({b"PLAIN", b"LOGIN"})  # those that smtpd supports
_COMMANDS = frozenset(
    b"EHLO HELO MAIL RCPT DATA RSET NOOP QUIT STARTTLS HELP VRFY EXPN WIZ ETRN BDAT".split()
)


def mask_command(command: bytes) -> bytes:
    """Return a client's command (`protocol-client`) without anything that may be a credential."""
    words = command.split(None, 2)
    if not words or words[0].upper() in _COMMANDS or command == b".":
        return command
    if words[0].upper() != b"AUTH":
        return MASK
    return b" ".join([b"AUTH", mask_credentials(b" ".join(words[1:]))]).rstrip()


def mask_credentials(argument: bytes) -> bytes:
    """Return the parameter of the phase `auth` reduced to its mechanism."""
    if argument == _SPOILT:
        return argument
    mechanism, space, _ = argument.partition(b" ")
    if mechanism.upper() not in _MECHANISMS:
        return MASK if argument else b""
    return mechanism + b" " + MASK if space else mechanism


def mask(row: bytes) -> bytes:
    """Return a line of smtpd or a filter without credentials."""
    if row.startswith(b"report|"):
        fields = row.split(b"|", 6)
        if len(fields) == 7 and fields[4] == b"protocol-client":
            fields[6] = mask_command(fields[6])
            return b"|".join(fields)
        if len(fields) == 7 and fields[4] == b"filter-response":
            phase, _, answer = fields[6].partition(b"|")
            changed = answer.startswith((b"rewrite", b"report")) and answer != SPOILT.wire
            if phase == b"auth" and changed:
                fields[6] = b"%b|%b|%b" % (phase, answer.partition(b"|")[0], MASK)
                return b"|".join(fields)
    elif row.startswith(b"filter|"):
        fields = row.split(b"|", 7)
        if len(fields) == 8 and fields[4] == b"auth":
            fields[7] = mask_credentials(fields[7])
            return b"|".join(fields)
    elif row.startswith(b"filter-result|"):
        fields = row.split(b"|", 4)
        if len(fields) == 5 and fields[3] == b"rewrite":
            mechanism = fields[4].partition(b" ")[0].upper()
            if mechanism in _MECHANISMS:
                fields[4] = mask_credentials(fields[4])
                return b"|".join(fields)
    return row
