"""The parser of Rspamd's replies, which turns status and JSON into a `Reply`.

`reply_reader` has read both, and spools the new body that may follow; `edits` applies the reply to
the message. Values are counted before the JSON is decoded. JSON objects are decoded as
dictionaries, which takes half the time of decoding pairs. The JSON is decoded a second time, as
pairs, only if the milter's part may contain a name twice.

Invariants
----------
*Errors are errors*: anything but a complete reply with an action raises `ReplyError`: a status
other than 200, invalid JSON, an error in place of a result, a missing action.
*Invalid parts are left out*: a part of the wrong type is left out and noted; the rest applies.
*Bounded*: work and memory are limited. A reply above a limit is an error, since a part of a reply
must not decide about the message. The limits are far above the reply of an honest daemon to any
message: see `docs/decisions/rspamd-replies.md`.
*In order*: headers are added in the order of the reply, where a name may occur twice.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from json import JSONDecoder

    from smtpd_filters.message import Body

#: Bytes of JSON. An ordinary reply has some 4,000; one that lists 10,240 links (rspamd's max_urls)
#: to hosts with the longest names has 2.6 MB.
MAX_JSON = 4 << 20
#: Values in the JSON: objects, arrays, and their members. An ordinary reply has a few hundred, and
#: one more for each link.
MAX_VALUES = 25_000
#: Symbols, and characters of a symbol's name; 20 symbols are ordinary, and a daemon has about a
#: thousand altogether.
MAX_SYMBOLS = 1000
MAX_NAME = 256
#: Edits of each kind: headers to add, headers to remove, signatures, recipients. The daemon's own
#: modules request about ten.
MAX_EDITS = 256
#: Characters of all headers to add. An ordinary reply has some 5,000.
MAX_TEXT = 128 << 10
#: Characters of a subject and of a text for the client; the rest is cut off, not an error, since
#: the sender chooses the subject.
_LONGEST = 8 << 10
#: Characters of the daemon's text in a cause.
_SHOWN = 200
#: Digits of a number: parsing takes time quadratic in them. A double has at most 17 significant
#: ones.
MAX_DIGITS = 500
#: Digits of an offset: a longer one is invalid, and slow to parse.
_DIGITS = 20
#: Characters searched for repeated names, above which the JSON is decoded again without a search.
_SEARCHED = 4 << 20
#: Notes that are kept of one reply.
_COMPLAINTS = 8


#: A number that is too long, after each of its digits was replaced by a zero; and what it has of a
#: sample of every so many bytes.
_ZEROS = b"0" * (MAX_DIGITS + 1)
_STRIDE = 50
_FEW_ZEROS = b"0" * (len(_ZEROS) // _STRIDE)
_ALL_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)

#: The decoder of all replies, since creating one takes as long as decoding a short reply; and the
#: decoder of JSON objects as tuples of pairs.
_decoders: list[JSONDecoder] = []


# A string of JSON, or an unterminated one to the end: if that didn't match, a search would go on at
# each quote in it, up to the end again.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+', re.DOTALL)


class ReplyError(Exception):
    """The reply has no valid result for the message; the text is the reason."""


class Addition:
    """A header to add; `order` is a milter's position, None for the bottom."""

    __slots__ = ("name", "order", "value")

    def __init__(self, name: str, value: str, order: int | None) -> None:
        self.name = name
        self.value = value
        self.order = order


class Reply:
    """A parsed reply: the action and the requested edits."""

    __slots__ = (
        "action",
        "additions",
        "block",
        "complaints",
        "dkim",
        "envelope",
        "kind",
        "message",
        "no_action",
        "on_reject",
        "removals",
        "required",
        "score",
        "spam_headers",
        "subject",
        "symbols",
    )

    def __init__(self, action: str) -> None:
        self.action = action
        #: "discard" or "quarantine" if the daemon declares the action, whatever its name, as that.
        self.kind = ""
        self.score: float | None = None
        #: The score from which on a message is rejected.
        self.required: float | None = None
        #: Names and scores, in the order of the reply.
        self.symbols: list[tuple[str, float]] = []
        #: The new subject of "rewrite subject", possibly encoded.
        self.subject: str | None = None
        #: The text of the SMTP reply.
        self.message = ""
        #: Fields to remove: lower-case names, and which of each name: 0 (all), n or -n.
        self.removals: dict[str, list[int]] = {}
        self.additions: list[Addition] = []
        #: Values of DKIM-Signature, the first on top.
        self.dkim: list[str] = []
        #: Requested changes of the envelope, as texts.
        self.envelope: list[str] = []
        #: What to do instead of a rejection: "", "discard" or "quarantine".
        self.on_reject = ""
        #: Whether to add the action as a header only, not to apply it.
        self.no_action = False
        #: Headers of a marked message: names ("" for the configured one) and values.
        self.spam_headers: list[tuple[str, str]] = []
        #: The new body, which the request's flags "milter,body_block" ask for.
        self.block: Body | None = None
        #: Notes about parts that were left out.
        self.complaints: list[str] = []

    def complain(self, text: str) -> None:
        """Note for the log that a part was left out."""
        if len(self.complaints) < _COMPLAINTS:
            self.complaints.append(text)

    def summary(self) -> str:
        """Return action, score, notes and symbols, the largest first, as the log may cut them."""
        words = [self.action]
        if self.score is not None:
            required = "" if self.required is None else f"/{self.required:g}"
            words.append(f"score {self.score:g}{required}")
        words += self.complaints
        scored = [symbol for symbol in self.symbols if symbol[1]]
        scored.sort(key=lambda symbol: -abs(symbol[1]))
        words += [f"{name}({score:g})" for name, score in scored]
        return ", ".join(words)


def parse(status: int, data: bytes) -> Reply:
    """Parse a reply: the HTTP status and the decompressed JSON.

    Raises ReplyError for a reply without a valid result; its text has no details that differ
    between messages.
    """
    content = None
    try:
        content = _read(data)
    except ReplyError:
        if status == 200:
            raise
    error = "" if content is None else _text(content, "error")
    if status != 200:
        raise ReplyError(f"status {status}" + (f": {error[:_SHOWN]}" if error else ""))
    assert content is not None  # noqa: S101  # it was raised
    if content.get("error") is not None:
        raise ReplyError(f"error: {error[:_SHOWN]}")
    action = _text(content, "action")
    if not action:
        raise ReplyError("no action in the reply")
    return _build(content, action[:_SHOWN])


def offset(text: str) -> int:
    """Parse `Message-Offset`, where the new body begins; raise ReplyError if it is invalid."""
    if not (text.isascii() and text.isdecimal()) or len(text) > _DIGITS:
        raise ReplyError("message offset is not a number")
    return int(text)


def _read(data: bytes) -> dict[str, object]:
    if len(data) > MAX_JSON:
        raise ReplyError("oversized reply")
    if _has_too_many_values(data):
        raise ReplyError(f"more than {MAX_VALUES} values in the reply")
    if _has_long_number(data):
        raise ReplyError(f"a number of more than {MAX_DIGITS} digits in the reply")
    if not _decoders:
        from json import JSONDecoder  # start-up time

        pairs = JSONDecoder(object_pairs_hook=tuple, strict=False)
        _decoders.extend((JSONDecoder(strict=False), pairs))
    # Options of symbols contain text of the mail, in any bytes.
    text = data.decode("utf-8", "surrogateescape")
    try:
        content = _decoders[0].decode(text)
        if isinstance(content, dict) and _may_repeat(text, content.get("milter")):
            content["milter"] = dict(_decoders[1].decode(text))["milter"]
    except (ValueError, RecursionError) as error:
        # Without the position, which the JSON library's text adds to the reason.
        reason = getattr(error, "msg", "a number too long")
        if isinstance(error, RecursionError):
            reason = "too deep"
        raise ReplyError(f"invalid JSON: {reason}") from None
    if not isinstance(content, dict):
        raise ReplyError("the reply is not a JSON object")
    return content


def _has_too_many_values(data: bytes) -> bool:
    """Return whether JSON has more values than allowed, without decoding it.

    The content of strings, which may be the sender's text, is not counted.
    """
    # Each counted value has a byte of its own.
    if len(data) <= MAX_VALUES or _count(data) <= MAX_VALUES:
        return False
    # The first quote of a string isn't escaped; a value has at most a name beside it.
    quotes = data.count(b'"') - data.count(b'\\"')
    return quotes > 4 * MAX_VALUES or _count(_STRING.sub(b"", data)) > MAX_VALUES


def _has_long_number(data: bytes) -> bool:
    """Return whether JSON has a number that is slow to parse, outside of strings."""
    if _FEW_ZEROS not in data[::_STRIDE].translate(_ALL_ZEROS):
        return False  # nearly always
    if _ZEROS not in data.translate(_ALL_ZEROS):
        return False
    return _ZEROS in _STRING.sub(b"", data).translate(_ALL_ZEROS)


def _count(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _may_repeat(text: str, milter: object) -> bool:
    """Return whether a name of the milter's part may occur a second time."""
    if not isinstance(milter, dict):
        return False
    names = list(milter)
    for headers in milter.values():
        if isinstance(headers, dict):
            names += headers
    if len(names) * len(text) > _SEARCHED:
        return True
    # A name with escapes isn't found, and may occur any number of times.
    return any(text.count(f'"{name}"') != 1 for name in names)


def _build(content: dict[str, object], action: str) -> Reply:
    reply = Reply(action)
    reply.kind = _text(content, "reject")
    reply.score = _number(content.get("score"))
    reply.required = _number(content.get("required_score"))
    subject = content.get("subject")
    if isinstance(subject, str):
        reply.subject = subject[:_LONGEST]
    messages = content.get("messages")
    if isinstance(messages, dict):
        reply.message = _text(messages, "smtp_message")[:_LONGEST]
    _take_symbols(reply, content.get("symbols"))
    _take_signatures(reply, content.get("dkim-signature"))
    milter = content.get("milter")
    if milter is not None:
        for key, value in _pairs(reply, "milter", milter):
            if taker := _MILTER.get(key):
                taker(reply, value)
    if _text_of(reply) > MAX_TEXT:
        raise ReplyError(f"more than {MAX_TEXT} characters of headers in the reply")
    return reply


def _text_of(reply: Reply) -> int:
    """Return the number of characters of all headers to add."""
    size = sum(map(len, reply.dkim))
    for each in reply.additions:
        size += len(each.name) + len(each.value)
    for name, value in reply.spam_headers:
        size += len(name) + len(value)
    return size


def _bound(what: str, count: int, most: int = MAX_EDITS) -> None:
    """Raise ReplyError for more than `most` edits (*Bounded*)."""
    if count > most:
        raise ReplyError(f"{what}: more than {most}")


def _take_symbols(reply: Reply, value: object) -> None:
    if not isinstance(value, dict):
        return
    _bound("symbols", len(value), MAX_SYMBOLS)
    symbols = reply.symbols
    for name, symbol in value.items():
        if len(name) > MAX_NAME:
            raise ReplyError(f"symbols: a name of more than {MAX_NAME} characters")
        score = symbol.get("score") if isinstance(symbol, dict) else None
        if type(score) is not float or score - score != 0:
            score = _number(score)
        if score is not None:
            symbols.append((name, score))


def _take_signatures(reply: Reply, value: object) -> None:
    signatures = _elements(value) if value is not None else []
    _bound("dkim-signature", len(signatures))
    for signature in signatures:
        if isinstance(signature, str):
            reply.dkim.append(signature)
        else:
            reply.complain("dkim-signature is not a string")


def _take_removals(reply: Reply, value: object) -> None:
    count = 0
    for name, numbers in _pairs(reply, "remove_headers", value):
        for number in _elements(numbers):
            count += 1
            _bound("remove_headers", count)
            which = _integer(number)
            if which is None:
                reply.complain(f"remove_headers {name[:_SHOWN]}: not a number")
            elif len(name) > MAX_NAME:
                reply.complain(f"remove_headers {name[:_SHOWN]}: too long for a name")
            else:
                reply.removals.setdefault(name.lower(), []).append(which)


def _take_additions(reply: Reply, value: object) -> None:
    count = 0
    for name, additions in _pairs(reply, "add_headers", value):
        for addition in _elements(additions):
            count += 1
            _bound("add_headers", count)
            added = _addition(reply, name, addition)
            if added is not None:
                reply.additions.append(added)


def _addition(reply: Reply, name: str, content: object) -> Addition | None:
    if isinstance(content, str):
        return Addition(name, content, None)
    members = dict(_members(content) or ())
    value = members.get("value")
    if not isinstance(value, str):
        reply.complain(f"add_headers {name[:_SHOWN]}: no value")
        return None
    given = members.get("order")
    if given is None:
        given = members.get("index")
    order = _integer(given)
    if given is not None and order is None:
        reply.complain(f"add_headers {name[:_SHOWN]}: order is not a number")
    return Addition(name, value, order)


def _take_sender(reply: Reply, value: object) -> None:
    if isinstance(value, str):
        reply.envelope.append(f"change_from {value[:_SHOWN]}")
    else:
        reply.complain("change_from is not a string")


def _take_recipients(what: str) -> Callable[[Reply, object], None]:
    def take(reply: Reply, value: object) -> None:
        if not isinstance(value, list):
            reply.complain(f"{what} is not an array")
            return
        _bound(what, len(value))
        for address in value:
            reply.envelope.append(f"{what} {str(address)[:_SHOWN]}")

    return take


def _take_on_reject(reply: Reply, value: object) -> None:
    if isinstance(value, str):
        reply.on_reject = value if value in ("discard", "quarantine") else ""
    else:
        reply.complain("milter.reject is not a string")


def _take_no_action(reply: Reply, value: object) -> None:
    if isinstance(value, bool):
        reply.no_action = value
    else:
        reply.complain("no_action is not a boolean")


def _take_spam_header(reply: Reply, value: object) -> None:
    # A string is the field's name according to the documentation, its value in the daemon's code.
    members = _members(value)
    marks = [("", value)] if members is None else list(members)
    _bound("spam_header", len(marks))
    for name, text in marks:
        if isinstance(text, str):
            reply.spam_headers.append((name, text))
        else:
            reply.complain("spam_header: no value")


_MILTER: dict[str, Callable[[Reply, object], None]] = {
    "remove_headers": _take_removals,
    "add_headers": _take_additions,
    "change_from": _take_sender,
    "add_rcpt": _take_recipients("add_rcpt"),
    "del_rcpt": _take_recipients("del_rcpt"),
    "reject": _take_on_reject,
    "no_action": _take_no_action,
    "spam_header": _take_spam_header,
}


def _pairs(reply: Reply, what: str, value: object) -> Iterable[tuple[str, object]]:
    members = _members(value)
    if members is None:
        reply.complain(f"{what} is not an object")
        return ()
    return members


def _members(value: object) -> Iterable[tuple[str, object]] | None:
    """Return the members of an object, decoded in either way; None if it isn't an object."""
    if isinstance(value, dict):
        return value.items()
    return value if isinstance(value, tuple) else None


def _text(content: dict[str, object], name: str) -> str:
    """Return the value of a name if it is a string, else ""."""
    value = content.get(name)
    return value if isinstance(value, str) else ""


def _elements(value: object) -> list[object]:
    """Return the elements of an array, or a single value as one element."""
    return value if isinstance(value, list) else [value]


def _number(value: object) -> float | None:
    """Return a finite number, or None."""
    if type(value) is float and value - value == 0:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if number - number == 0 else None


def _integer(value: object) -> int | None:
    """Return a whole number, or None; Lua's 1 may arrive as 1.0."""
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None
