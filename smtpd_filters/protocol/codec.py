"""Decoder and encoder for single lines of the protocol, of smtpd and of a filter.

A line has as many fields as its kind defines. Surplus bars belong to its one wide field
(`vocabulary.ReportForm`).

Invariants
----------
*Total*: decoding never raises; an invalid line becomes `Malformed`.
*Inverse*: decoding an encoded value returns the value.
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
#: How often to split at a bar, after the keyword.
_ANSWERS = {b"filter-result": 3, b"filter-dataline": 2}
_KINDS: dict[str, Literal["report", "filter"]] = {"report": "report", "filter": "filter"}
_DATA_LINE = DATA_LINE.encode()
_SUBSYSTEMS = frozenset({b"smtp-in", b"smtp-out"})


def is_id(text: bytes) -> bool:
    """Return whether this is a valid session or token: 1 to 16 hexadecimal digits.

    smtpd exits on an answer with anything else.
    """
    return 0 < len(text) <= 16 and not text.strip(HEX)


def fit(values: list[bytes], form: ReportForm) -> list[bytes] | None:
    """Join or pad values that were split at bars to the number of fields of the report.

    Surplus values are joined again into the wide field. Up to `form.optional` missing ones at the
    end are added as empty. Return None if there are still too few.
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
    """Decode one line of smtpd, given without its line end.

    Return None for an unknown report, and for a report of a subsystem without SMTP sessions, which
    has different fields.

    A data-line becomes a `Lines` with one line; the final dot a `Lines` with no line and `end` set.
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
    return Malformed("unknown keyword", line)


def _decode_request(line: bytes) -> Request | Lines | Malformed:
    fields = line.split(b"|", 7)
    if len(fields) < 7 or not (is_id(fields[5]) and is_id(fields[6])):
        return Malformed("request without session or token", line)
    _, _, time, subsystem, name, session, token = fields[:7]
    if len(fields) < 8 or subsystem != b"smtp-in":
        if name == _DATA_LINE:  # smtpd exits on a result for it
            return Malformed("invalid data-line", line, session)
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
    """Encode a line of the handshake."""
    if config.key == "ready":
        return b"config|ready\n"
    return f"config|{config.key}|{config.value}\n".encode("utf-8", "surrogateescape")


def encode_report(report: Report, dialect: Dialect) -> bytes:
    """Encode a report in this version of the protocol."""
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
    """Encode a request; `name` is its phase on the wire, since `request.phase` may be None."""
    fields = (b"filter", dialect.wire, request.time, b"smtp-in", name)
    return b"|".join((*fields, request.session, request.token, request.argument)) + b"\n"


def encode_lines(lines: Lines, time: bytes, dialect: Dialect) -> bytes:
    """Encode data-lines as smtpd does, followed by the final dot if `lines.end` is set."""
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
    """Decode one line of a filter, given without its line end, as strictly as smtpd does."""
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
    return Malformed("unknown keyword", line)


def _decode_registration(line: bytes, rest: bytes) -> Register | Malformed:
    names = rest.decode("utf-8", "surrogateescape").split("|")
    if names == ["ready"]:
        return Register("ready")
    kind = _KINDS.get(names[0])
    if kind is None or len(names) != 3:
        return Malformed("invalid registration", line)
    return Register(kind, names[1], names[2])
