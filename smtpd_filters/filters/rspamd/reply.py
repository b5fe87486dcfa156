"""What rspamd says of a message: its reply read, and found to be one.

The law:
1. An error is an error. What isn't a whole reply that says what to do raises `ReplyError`: a status
   other than 200, JSON that is none, an error in place of a verdict, an action that is missing.
2. A part of a reply that isn't of its kind is left out and complained of: the mail is judged all
   the same.
3. Work and memory are bounded. A reply beyond a bound is an error: the daemon has failed, and the
   message is not judged by a part of what it says. Bounds are far above what an honest daemon sends
   of any mail: see `docs/decisions/rspamd-replies.md`.
4. Order counts. Headers are added in the order in which they stand in the reply, and a name may
   stand there twice.

How it works. `parse` takes the status and the JSON; `reply_reader` has read it, and puts the new
body behind it, if there is one, into the message's spool. Values are counted before any is made.
JSON's objects become dictionaries, which takes half as long as to read them as pairs; only where
the milter's part may hold a name twice it is read again, as that.
`edits` does to the message what the reply says.
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
#: Values in it: objects, arrays, and what stands in them. An ordinary reply has a few hundred, and
#: one more for each link.
MAX_VALUES = 25_000
#: Symbols, and characters of a name; some 20 are ordinary, and a daemon has about a thousand
#: altogether.
MAX_SYMBOLS = 1000
MAX_NAME = 256
#: Changes of each kind: headers to be added, headers to be removed, signatures, recipients. The
#: daemon's own modules come to about ten.
MAX_EDITS = 256
#: Characters of all headers to be added. An ordinary reply has some 5,000.
MAX_TEXT = 128 << 10
#: Characters of a subject and of a text for the client; what is beyond is cut off, since the first
#: is the sender's to choose.
_LONGEST = 8 << 10
#: Characters of the daemon's own words, and of ours, that go into a cause.
_SHOWN = 200
#: Digits of a number: to read it takes time that grows with their square. A double has at most 17
#: that count.
MAX_DIGITS = 500
#: Digits of an offset: more than that is none, and takes long to read.
_DIGITS = 20
#: Characters that are looked through for names that stand there twice, before it is read again.
_SEARCHED = 4 << 20
#: What is kept of the complaints about one reply.
_COMPLAINTS = 8


#: So many digits, when each digit is written as a zero.
_ZEROS = b"0" * (MAX_DIGITS + 1)
_ALL_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)

#: One for all replies, since making it takes as long as reading a short one; and one that makes
#: tuples of pairs of JSON's objects.
_decoders: list[JSONDecoder] = []


# A string of JSON; what is broken may be taken for none.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


class ReplyError(Exception):
    """The daemon has not judged the message; the text says why."""


class Addition:
    """A header to be added: where, counted as a milter does, or None for the bottom."""

    __slots__ = ("name", "order", "value")

    def __init__(self, name: str, value: str, order: int | None) -> None:
        self.name = name
        self.value = value
        self.order = order


class Reply:
    """What the daemon says, in terms of what is to be done."""

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
        #: "discard" or "quarantine" if the action, whatever it is called, is declared as that.
        self.kind = ""
        self.score: float | None = None
        #: The score from which a message is refused.
        self.required: float | None = None
        #: Names and scores, as they come.
        self.symbols: list[tuple[str, float]] = []
        #: The subject to be, of "rewrite subject"; may be encoded already.
        self.subject: str | None = None
        #: What the client is to be told.
        self.message = ""
        #: Fields to be removed: a lower-case name, and which of that name: 0, n or -n.
        self.removals: dict[str, list[int]] = {}
        self.additions: list[Addition] = []
        #: Values of DKIM-Signature, the first on top.
        self.dkim: list[str] = []
        #: Changes of the envelope that are asked for, each in words.
        self.envelope: list[str] = []
        #: What to do in place of a refusal: "", "discard" or "quarantine".
        self.on_reject = ""
        #: Nothing is to be done but to tell the action in a header.
        self.no_action = False
        #: Of a message that is marked: names ("" for the configured one) and values.
        self.spam_headers: list[tuple[str, str]] = []
        #: The new body: the request asks for it with the flags "milter,body_block".
        self.block: Body | None = None
        #: What was left out.
        self.complaints: list[str] = []

    def complain(self, text: str) -> None:
        """Take note of what was left out."""
        if len(self.complaints) < _COMPLAINTS:
            self.complaints.append(text)

    def summary(self) -> str:
        """Action, score, what was left out, and symbols, the heaviest first: a log may cut them."""
        words = [self.action]
        if self.score is not None:
            required = "" if self.required is None else f"/{self.required:g}"
            words.append(f"score {self.score:g}{required}")
        words += self.complaints
        heavy = sorted(self.symbols, key=lambda symbol: -abs(symbol[1]))
        words += [f"{name}({score:g})" for name, score in heavy if score]
        return ", ".join(words)


def parse(status: int, data: bytes) -> Reply:
    """Read a reply: HTTP's status, and the JSON without its coding.

    Raises ReplyError for whatever isn't a verdict; its text holds nothing that differs from one
    message to the next.
    """
    said = None
    try:
        said = _read(data)
    except ReplyError:
        if status == 200:
            raise
    error = "" if said is None else _text(said, "error")
    if status != 200:
        raise ReplyError(f"status {status}" + (f": {error[:_SHOWN]}" if error else ""))
    assert said is not None  # noqa: S101  # it was raised
    if said.get("error") is not None:
        raise ReplyError(f"error: {error[:_SHOWN]}")
    action = _text(said, "action")
    if not action:
        raise ReplyError("no action in the reply")
    return _taken(said, action[:_SHOWN])


def offset(text: str) -> int:
    """Where the JSON ends and a new body begins, by the field ``Message-Offset``; or ReplyError."""
    if not (text.isascii() and text.isdecimal()) or len(text) > _DIGITS:
        raise ReplyError("message offset is no number")
    return int(text)


def _read(data: bytes) -> dict[str, object]:
    if len(data) > MAX_JSON:
        raise ReplyError("oversized reply")
    if _has_too_many_values(data):
        raise ReplyError(f"more than {MAX_VALUES} values in the reply")
    if _has_long_number(data):
        raise ReplyError(f"a number of more than {MAX_DIGITS} digits in the reply")
    if not _decoders:
        from json import JSONDecoder  # only who talks to rspamd pays for it

        pairs = JSONDecoder(object_pairs_hook=tuple, strict=False)
        _decoders.extend((JSONDecoder(strict=False), pairs))
    # Symbols' options hold what stood in the mail, whatever its bytes are.
    text = data.decode("utf-8", "surrogateescape")
    try:
        said = _decoders[0].decode(text)
        if isinstance(said, dict) and _may_repeat(text, said.get("milter")):
            said["milter"] = dict(_decoders[1].decode(text))["milter"]
    except (ValueError, RecursionError) as error:
        # That of the JSON library has the place beside the reason.
        reason = getattr(error, "msg", "a number too long")
        if isinstance(error, RecursionError):
            reason = "too deep"
        raise ReplyError(f"broken JSON: {reason}") from None
    if not isinstance(said, dict):
        raise ReplyError("the reply is no JSON object")
    return said


def _has_too_many_values(data: bytes) -> bool:
    """Whether JSON has more values than are read, counted without making any.

    What stands in strings, which may be the sender's text, is not counted.
    """
    # Each value that is counted has a byte of its own.
    if len(data) <= MAX_VALUES or _count(data) <= MAX_VALUES:
        return False
    # The first quote of a string is no escaped one; a value has at most a name beside it.
    quotes = data.count(b'"') - data.count(b'\\"')
    return quotes > 4 * MAX_VALUES or _count(_STRING.sub(b"", data)) > MAX_VALUES


def _has_long_number(data: bytes) -> bool:
    """Whether JSON has a number that takes long to read; what stands in strings is none."""
    if _ZEROS not in data.translate(_ALL_ZEROS):
        return False
    return _ZEROS in _STRING.sub(b"", data).translate(_ALL_ZEROS)


def _count(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _may_repeat(text: str, milter: object) -> bool:
    """Whether a name of the milter's part stands somewhere else as well."""
    if not isinstance(milter, dict):
        return False
    names = list(milter)
    for headers in milter.values():
        if isinstance(headers, dict):
            names += headers
    if len(names) * len(text) > _SEARCHED:
        return True
    # One that is written with escapes isn't found: it may be there any number of times.
    return any(text.count(f'"{name}"') != 1 for name in names)


def _taken(said: dict[str, object], action: str) -> Reply:
    reply = Reply(action)
    reply.kind = _text(said, "reject")
    reply.score = _number(said.get("score"))
    reply.required = _number(said.get("required_score"))
    subject = said.get("subject")
    if isinstance(subject, str):
        reply.subject = subject[:_LONGEST]
    messages = said.get("messages")
    if isinstance(messages, dict):
        reply.message = _text(messages, "smtp_message")[:_LONGEST]
    _take_symbols(reply, said.get("symbols"))
    _take_signatures(reply, said.get("dkim-signature"))
    milter = said.get("milter")
    if milter is not None:
        for key, value in _pairs(reply, "milter", milter):
            if taker := _MILTER.get(key):
                taker(reply, value)
    if _text_of(reply) > MAX_TEXT:
        raise ReplyError(f"more than {MAX_TEXT} characters of headers in the reply")
    return reply


def _text_of(reply: Reply) -> int:
    """The characters of all headers that are to be added."""
    added = sum(len(each.name) + len(each.value) for each in reply.additions)
    marks = sum(len(name) + len(value) for name, value in reply.spam_headers)
    return added + marks + sum(map(len, reply.dkim))


def _bound(what: str, count: int, most: int = MAX_EDITS) -> None:
    """Law 3: so many there are."""
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
            reply.complain("dkim-signature is no string")


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


def _addition(reply: Reply, name: str, said: object) -> Addition | None:
    if isinstance(said, str):
        return Addition(name, said, None)
    members = dict(_members(said) or ())
    value = members.get("value")
    if not isinstance(value, str):
        reply.complain(f"add_headers {name[:_SHOWN]}: no value")
        return None
    given = members.get("order")
    if given is None:
        given = members.get("index")
    order = _integer(given)
    if given is not None and order is None:
        reply.complain(f"add_headers {name[:_SHOWN]}: order is no number")
    return Addition(name, value, order)


def _take_sender(reply: Reply, value: object) -> None:
    if isinstance(value, str):
        reply.envelope.append(f"change_from {value[:_SHOWN]}")
    else:
        reply.complain("change_from is no string")


def _take_recipients(what: str) -> Callable[[Reply, object], None]:
    def take(reply: Reply, value: object) -> None:
        if not isinstance(value, list):
            reply.complain(f"{what} is no array")
            return
        _bound(what, len(value))
        for address in value:
            reply.envelope.append(f"{what} {str(address)[:_SHOWN]}")

    return take


def _take_on_reject(reply: Reply, value: object) -> None:
    if isinstance(value, str):
        reply.on_reject = value if value in ("discard", "quarantine") else ""
    else:
        reply.complain("milter.reject is no string")


def _take_no_action(reply: Reply, value: object) -> None:
    if isinstance(value, bool):
        reply.no_action = value
    else:
        reply.complain("no_action is no boolean")


def _take_spam_header(reply: Reply, value: object) -> None:
    # The documentation takes a string for the field's name, the daemon's own code for its value.
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
        reply.complain(f"{what} is no object")
        return ()
    return members


def _members(value: object) -> Iterable[tuple[str, object]] | None:
    """The names and values of an object, however it was read; None if it is none."""
    if isinstance(value, dict):
        return value.items()
    return value if isinstance(value, tuple) else None


def _text(said: dict[str, object], name: str) -> str:
    """The value of that name if it is a string, else an empty one."""
    value = said.get(name)
    return value if isinstance(value, str) else ""


def _elements(value: object) -> list[object]:
    """The elements of an array; a value that stands alone."""
    return value if isinstance(value, list) else [value]


def _number(value: object) -> float | None:
    """A finite number."""
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
    """A whole number; Lua's 1 may come as 1.0."""
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None
