"""Credentials, masked wherever smtpd hands them out.

They come in the request ``auth``, in what the client said, and in what another filter answered.  Of
what a client said only commands that are known are shown: a client whose AUTH was refused sends
user and password all the same, and smtpd then takes each for a command that it does not know.
"""

from __future__ import annotations

#: What smtpd itself writes in place of a credential.
MASK = b"********"
_MECHANISMS = frozenset({b"PLAIN", b"LOGIN"})  # those that smtpd has
_COMMANDS = frozenset(
    b"EHLO HELO MAIL RCPT DATA RSET NOOP QUIT STARTTLS HELP VRFY EXPN WIZ ETRN BDAT".split()
)


def mask_command(command: bytes) -> bytes:
    """What a client said, for ``protocol-client``, with nothing in it that may be a credential."""
    words = command.split(None, 2)
    if not words or words[0].upper() in _COMMANDS or command == b".":
        return command
    if words[0].upper() != b"AUTH":
        return MASK
    return b" ".join([b"AUTH", mask_credentials(b" ".join(words[1:]))]).rstrip()


def mask_credentials(argument: bytes) -> bytes:
    """The parameter of the phase ``auth``: only the mechanism is left of it."""
    mechanism, space, _ = argument.partition(b" ")
    if mechanism.upper() not in _MECHANISMS:
        return MASK if argument else b""
    return mechanism + b" " + MASK if space else mechanism


def mask(row: bytes) -> bytes:
    """A line of smtpd's or of a filter's without credentials."""
    if row.startswith(b"report|"):
        fields = row.split(b"|", 6)
        if len(fields) == 7 and fields[4] == b"protocol-client":
            fields[6] = mask_command(fields[6])
            return b"|".join(fields)
        if len(fields) == 7 and fields[4] == b"filter-response":
            phase, _, answer = fields[6].partition(b"|")
            if phase == b"auth" and answer.startswith((b"rewrite", b"report")):
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
