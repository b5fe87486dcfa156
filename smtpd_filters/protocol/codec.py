"""One line of the wire, read and written: smtpd's side of the conversation and the filter's.

Law
---
1. A line has as many fields as its kind says; what holds more bars than that holds them in
   its one wide field (`vocabulary.ReportForm`).
2. Reading never raises: a line that is none is `Malformed`.
3. Writing and reading are inverse.
"""

from __future__ import annotations

from .events import Config, Line, Lines, Malformed, Register, Report, Request, Result
from .vocabulary import DATA_LINE, PHASES_ON_WIRE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from .versions import Dialect
    from .vocabulary import ReportForm

HEX = b"0123456789abcdefABCDEF"
#: How many bars there are to be cut at behind the word.
_ANSWERS = {b"filter-result": 3, b"filter-dataline": 2}
_KINDS: dict[str, Literal["report", "filter"]] = {"report": "report", "filter": "filter"}
_DATA_LINE = DATA_LINE.encode()
_SUBSYSTEMS = frozenset({b"smtp-in", b"smtp-out"})


def is_id(text: bytes) -> bool:
    """Whether smtpd can have meant this as a session or a token: up to 16 hexadecimal digits.

    An answer with anything else ends the server.
    """
    return 0 < len(text) <= 16 and not text.strip(HEX)


def fit(values: list[bytes], form: ReportForm) -> list[bytes] | None:
    """Make as many values of what stood between bars as the report has fields.

    Those too many are bars within the wide field; of the last, ``form.optional`` ones may be
    missing and come empty.  None when there are too few.
    """
    count = len(form.fields)
    if len(values) > count:
        if not count:
            return []
        end = len(values) - (count - 1 - form.wide)
        return [
            *values[: form.wide],
            b"|".join(values[form.wide : end]),
            *values[end:],
        ]
    if len(values) + form.optional < count:
        return None
    return values + [b""] * (count - len(values))


def decode(line: bytes, dialect: Dialect) -> Config | Report | Request | Lines | Malformed | None:
    """Read one line of smtpd's, without its line end.

    None for an unknown report, and for one of another subsystem than SMTP sessions: those have
    fields of their own, and no session.

    A data-line comes as `Lines` of one, the final dot as none with ``end``.
    """
    if line.startswith(b"report|"):
        return _decode_report(line, dialect)
    if line.startswith(b"filter|"):
        return _decode_request(line)
    if line.startswith(b"config|"):
        fields = line.decode("utf-8", "surrogateescape").split("|", 2)
        if len(fields) == 3 or fields[1] == "ready":
            return Config(*fields[1:])
        return Malformed("config without a value", line)
    return Malformed("unknown word", line)


def _decode_request(line: bytes) -> Request | Lines | Malformed:
    fields = line.split(b"|", 7)
    if len(fields) < 7 or not (is_id(fields[5]) and is_id(fields[6])):
        return Malformed("request without session or token", line)
    _, _, time, subsystem, name, session, token = fields[:7]
    if len(fields) < 8 or subsystem != b"smtp-in":
        return Malformed("request without its last field", line, session, token)
    argument = fields[7]
    if name == _DATA_LINE:
        end = argument == b"."
        return Lines(session, token, [] if end else [argument], end=end)
    return Request((PHASES_ON_WIRE.get(name), time, session, token, argument))


def _decode_report(line: bytes, dialect: Dialect) -> Report | Malformed | None:
    fields = line.split(b"|")
    if len(fields) > 4 and fields[3] not in _SUBSYSTEMS:
        return None
    if len(fields) < 6 or not is_id(fields[5]):
        return Malformed("report without a session", line)
    form = dialect.reports.get(fields[4])
    if form is None:
        return None
    values = fields[6:]
    if len(values) != len(form.fields):
        fitted = fit(values, form)
        if fitted is None:
            return Malformed(f"{form.name} with too few fields", line)
        values = fitted
    if form.wire in dialect.order:
        values = [values[i] for i in dialect.order[form.wire]]
    return Report((form.name, fields[3], fields[2], fields[5], tuple(values)))


def encode_config(config: Config) -> bytes:
    """Write a line of the hand-shake."""
    if config.key == "ready":
        return b"config|ready\n"
    return f"config|{config.key}|{config.value}\n".encode("utf-8", "surrogateescape")


def encode_report(report: Report, dialect: Dialect) -> bytes:
    """Write a report as ``dialect`` has it."""
    name = report.name.encode()
    form = dialect.reports[name]
    values = report.values
    order = dialect.order.get(name)
    if order:
        values = tuple(values[order.index(i)] for i in range(len(order)))
    for _ in range(form.optional):
        if values and not values[-1]:
            values = values[:-1]
    fields = (b"report", dialect.wire, report.time, report.subsystem, name, report.session)
    return b"|".join((*fields, *values)) + b"\n"


def encode_request(request: Request, name: bytes, dialect: Dialect) -> bytes:
    """Write a request; ``name`` is the phase's, which an unknown one does not carry."""
    fields = (b"filter", dialect.wire, request.time, b"smtp-in", name)
    return b"|".join((*fields, request.session, request.token, request.argument)) + b"\n"


def encode_lines(lines: Lines, time: bytes, dialect: Dialect) -> bytes:
    """Write data-lines as smtpd does, with the final dot when they have come to their end."""
    fields = (
        b"filter",
        dialect.wire,
        time,
        b"smtp-in",
        _DATA_LINE,
        lines.session,
        lines.token,
        b"",
    )
    head = b"|".join(fields)
    content: Iterable[bytes] = [*lines.lines, b"."] if lines.end else lines.lines
    return b"".join([head + line + b"\n" for line in content])


def decode_answer(line: bytes, dialect: Dialect) -> Register | Result | Line | Malformed:
    """Read one line of a filter's, without its line end, as strictly as smtpd does."""
    word, _, rest = line.partition(b"|")
    if word in _ANSWERS:
        fields = rest.split(b"|", _ANSWERS[word])
        if len(fields) < 3 or not (is_id(fields[0]) and is_id(fields[1])):
            return Malformed(f"{word.decode()} without session and token", line)
        session, token = fields[1::-1] if dialect.token_first else fields[:2]
        if word == b"filter-dataline":
            return Line(session, token, fields[2])
        return Result(session, token, fields[2], fields[3] if len(fields) > 3 else None)
    if word == b"register":
        return _decode_registration(line, rest)
    return Malformed("unknown word", line)


def _decode_registration(line: bytes, rest: bytes) -> Register | Malformed:
    names = rest.decode("utf-8", "surrogateescape").split("|")
    if names == ["ready"]:
        return Register("ready")
    kind = _KINDS.get(names[0])
    if kind is None or len(names) != 3:
        return Malformed("invalid registration", line)
    return Register(kind, names[1], names[2])
