"""The versions of the protocol and their differences, which no other module states.

| version | smtpd      | difference from the version above                                    |
| ------- | ---------- | -------------------------------------------------------------------- |
| 0.7     | 7.0 on     |                                                                      |
| 0.6     | 6.7, 6.8   | `link-auth` is `username|result`; only the event lines contain the   |
|         |            | version                                                              |
| 0.5     | 6.6        | `tx-mail` and `tx-rcpt` are `msgid|address|result`                   |
| before  |            | answers are `token|session`                                          |

A version above 0.7 is treated as 0.7. A version below 0.5 is refused at start. If it appears only
in the first event, when a refusal would end the server, it is used as far as it is known.
"""

from __future__ import annotations

from .vocabulary import REPORTS, ReportForm

OLDEST, NEWEST = (0, 5), (0, 7)
#: The first smtpd that accepts data-lines whole. Older ones silently truncate each line that a
#: filter returns to `CUT` bytes.
FIRST_WHOLE = (7, 4)
#: Bytes of a data-line's content that such a server keeps.
CUT = 1997


class UnsupportedProtocolError(Exception):
    """The server's protocol is too old.  Raised before `register|ready`."""


def version(text: str) -> tuple[int, int] | None:
    """Return the first two numbers of a version such as `0.7` or `6.8.0p2`; None if invalid."""
    major, dot, rest = text.partition(".")
    minor = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    if not (dot and major.isascii() and major.isdigit() and minor) or len(major + minor) > 18:
        return None
    return int(major), int(minor)


class Dialect:
    """The wire format of one version of the protocol."""

    __slots__ = ("name", "order", "reports", "token_first", "version", "wire")

    def __init__(self, spoken: tuple[int, int], changed: tuple[ReportForm, ...] = ()) -> None:
        self.version = spoken
        self.name = f"{spoken[0]}.{spoken[1]}"
        self.wire = self.name.encode()
        #: By the name on the wire.
        reports = {report.wire: report for report in REPORTS.values()}
        self.reports = reports | {report.wire: report for report in changed}
        #: By report: the places of its fields on the wire, in the field order of 0.7.
        self.order = {
            form.wire: tuple(form.fields.index(field) for field in REPORTS[form.name].fields)
            for form in changed
        }
        self.token_first = spoken < OLDEST

    def __repr__(self) -> str:
        return f"<protocol {self.name}>"


_AUTH = ReportForm("link-auth", "username result", wide="username")
_MAIL = ReportForm("tx-mail", "msgid address result", wide="address")
_RCPT = ReportForm("tx-rcpt", "msgid address result", wide="address")

DIALECTS: dict[tuple[int, int], Dialect] = {
    (0, 7): Dialect((0, 7)),
    (0, 6): Dialect((0, 6), (_AUTH,)),
    (0, 5): Dialect((0, 5), (_AUTH, _MAIL, _RCPT)),
}
_ANCIENT = Dialect((0, 4), (_AUTH, _MAIL, _RCPT))


def dialect(spoken: tuple[int, int]) -> Dialect:
    """Return the dialect of a version, or the nearest one of an unknown version."""
    if spoken < OLDEST:
        return _ANCIENT
    return DIALECTS[min(spoken, NEWEST)]


def require_supported(spoken: Dialect, announced: str) -> None:
    """Raise UnsupportedProtocolError if the version announced at the start is below 0.5."""
    if spoken.version < OLDEST:
        raise UnsupportedProtocolError(
            f"smtpd has filter protocol {announced}; at least 0.5 is required"
        )


def cuts_lines(smtpd_version: str) -> bool:
    """Return whether a server of this version (`config|smtpd-version`) truncates data-lines.

    An unknown version counts as new.
    """
    found = version(smtpd_version)
    return found is not None and found < FIRST_WHOLE
