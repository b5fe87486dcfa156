"""The text of smtpd.conf(5) for a server of the lab."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .credentials import hashes
from .layout import FIRST_UID, MAIL, PROBE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOMAIN = "local.example"
_ESCAPED = re.compile(r'"|(?<=\\)[ \t]')
# A line end within quotes is dropped, as are the two characters that parse.y encloses values of
# macros in, and a NUL ends a string of C.
_UNSAYABLE = re.compile(r"[\n\0\1\2]")
LISTENERS = """\
listen on socket $filter
listen on 127.0.0.1 port 25 $tls auth-optional <credentials> $filter
listen on ::1 port 25 $tls auth-optional <credentials> $filter
"""
MATCHES = """\
match from any for domain <domains> action "deliver"
match from local for local action "deliver"
"""


def configuration(  # noqa: PLR0913  # keyword-only: the parts of the file
    version: str,
    *,
    users: Sequence[str],
    domains: Sequence[str],
    filters: Mapping[str, str],
    declarations: str,
    listeners: str,
    matches: str,
    probe_port: int,
) -> str:
    """Return the text; the arguments are those of `Smtpd`, and the port of the probe.

    Raises ValueError as `Smtpd` does.
    """
    # userinfo of table(5): uid, gid, home
    userinfo = {
        user: f"{FIRST_UID + number}:{FIRST_UID + number}:{MAIL}/{user}"
        for number, user in enumerate(users)
    }
    credentials = dict(zip(users, hashes(tuple(users)), strict=True))
    lines = [
        *_security(version),
        'smtp max-message-size "64M"',
        f"table domains {{ {', '.join(map(_quoted, domains))} }}",
        _mapping("users", userinfo),
        _mapping("credentials", credentials),
        *(f"filter {_quoted(n)} proc-exec {_quoted(c)}" for n, c in filters.items()),
    ]
    if filters:
        lines.append(f'filter "all" chain {{ {", ".join(map(_quoted, filters))} }}')
    lines += [
        f'action "deliver" maildir "{MAIL}/%{{user.username}}" junk userbase <users>',
        declarations,
        listeners.replace("$tls", "tls pki lab").replace(
            "$filter", 'filter "all"' if filters else ""
        ),
        matches,
        f"listen on {PROBE} port {probe_port}",
    ]
    return "\n".join(lines) + "\n"


def _security(version: str) -> list[str]:
    lines = ['pki lab cert "/srv/lab/certificate.pem"', 'pki lab key "/srv/lab/key.pem"']
    if version == "6.8":
        # 6.8 requires a key but can't use it with OpenSSL 3; ciphers without one work.
        lines.append('smtp ciphers "aNULL:@SECLEVEL=0"')
    return lines


def _quoted(text: str) -> str:
    """Return a string of smtpd.conf(5), as yylex() of its parse.y reads it.

    A backslash is dropped before a quote and a blank, and stays before anything else, another one
    included. Raises ValueError for a text that can't be said in this way.
    """
    if text.endswith("\\"):
        raise ValueError(f"smtpd.conf can't have a backslash at the end of a text: {text!r}")
    if wrong := _UNSAYABLE.search(text):
        raise ValueError(f"smtpd.conf can't have {wrong[0]!r} in a text: {text!r}")
    return '"' + _ESCAPED.sub(r"\\\g<0>", text) + '"'


def _mapping(name: str, entries: Mapping[str, str]) -> str:
    """Return the declaration of a table that is a mapping."""
    inside = ", ".join(f"{_quoted(key)} = {_quoted(value)}" for key, value in entries.items())
    return f"table {name} {{ {inside} }}"
