"""What rspamd says of a message: its reply read, and found to be one.

The law:
1. An error is an error. What isn't a whole reply that says what to do raises `ReplyError`: a status
   other than 200, JSON that is none, an error in place of a verdict, an action that is missing.
2. A part of a reply that isn't of its kind is left out and complained of: the mail is judged all
   the same.
3. Order counts. Headers are added in the order in which they stand in the reply, and a name may
   stand there twice.

How it works. `parse` takes the status, the bytes and where, by ``Message-Offset``, the JSON ends.
JSON's objects become dictionaries, which takes half as long as to read them as pairs; only where
the milter's part may hold a name twice it is read again, as that.
`smtpd_filters.filters._rspamd_edits` does to the message what the reply says.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from json import JSONDecoder

#: Bytes of JSON that are read: about a thousand times an ordinary reply.
MAX_JSON = 4 << 20
#: Characters of the daemon's own words, and of ours, that go into a cause.
_SHOWN = 200
#: Digits of an offset: more than that is none, and takes long to read.
_DIGITS = 20
#: Names that are looked for in a reply before it is read again; each is a walk through all of it.
_FEW = 64
#: What is kept of the complaints about one reply.
_COMPLAINTS = 8
#: Headers that a reply may add, and remove: each costs a walk through the block.  The daemon's own
#: modules come to about ten.
_EDITS = 256


#: One for all replies, since making it takes as long as reading a short one; and one that makes
#: tuples of pairs of JSON's objects.
_decoders: list[JSONDecoder] = []


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
        self.block: bytes | None = None
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


def parse(status: int, body: bytes, message_offset: str | None = None) -> Reply:
    """Read a reply.

    `status` is HTTP's, `body` the content without its coding, `message_offset` the value of the
    field of that name: where in it the JSON ends and a new body begins. Raises ReplyError for
    whatever isn't a verdict; its text holds nothing that differs from one message to the next.
    """
    offset = None if message_offset is None else _offset(message_offset, len(body))
    said = None
    try:
        said = _read(body if offset is None else body[:offset])
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
    return _taken(said, action, None if offset is None else body[offset:])


def _offset(text: str, size: int) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > _DIGITS:
        raise ReplyError("message offset is no number")
    offset = int(text)
    if offset > size:
        raise ReplyError("message offset outside of the reply")
    return offset


def _read(data: bytes) -> dict[str, object]:
    if len(data) > MAX_JSON:
        raise ReplyError("oversized reply")
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


def _may_repeat(text: str, milter: object) -> bool:
    """Whether a name of the milter's part stands somewhere else as well."""
    if not isinstance(milter, dict):
        return False
    names = list(milter)
    for headers in milter.values():
        if isinstance(headers, dict):
            names += headers
    # One that is written with escapes isn't found: it may be there any number of times.
    return len(names) > _FEW or any(text.count(f'"{name}"') != 1 for name in names)


def _taken(said: dict[str, object], action: str, block: bytes | None) -> Reply:
    reply = Reply(action)
    reply.kind = _text(said, "reject")
    reply.block = block
    reply.score = _number(said.get("score"))
    reply.required = _number(said.get("required_score"))
    subject = said.get("subject")
    if isinstance(subject, str):
        reply.subject = subject
    messages = said.get("messages")
    if isinstance(messages, dict):
        reply.message = _text(messages, "smtp_message")
    _take_symbols(reply, said.get("symbols"))
    _take_signatures(reply, said.get("dkim-signature"))
    milter = said.get("milter")
    if milter is not None:
        for key, value in _pairs(reply, "milter", milter):
            if taker := _MILTER.get(key):
                taker(reply, value)
    return reply


def _take_symbols(reply: Reply, value: object) -> None:
    if not isinstance(value, dict):
        return
    for name, symbol in value.items():
        score = _number(symbol.get("score")) if isinstance(symbol, dict) else None
        if score is not None:
            reply.symbols.append((name, score))


def _take_signatures(reply: Reply, value: object) -> None:
    for signature in _elements(value) if value is not None else ():
        if len(reply.dkim) >= _EDITS:
            reply.complain(f"dkim-signature: more than {_EDITS}")
            return
        if isinstance(signature, str):
            reply.dkim.append(signature)
        else:
            reply.complain("dkim-signature is no string")


def _take_removals(reply: Reply, value: object) -> None:
    for name, numbers in _pairs(reply, "remove_headers", value):
        for number in _elements(numbers):
            which = _integer(number)
            if which is None:
                reply.complain(f"remove_headers {name[:_SHOWN]}: not a number")
            elif sum(map(len, reply.removals.values())) >= _EDITS:
                reply.complain(f"remove_headers: more than {_EDITS}")
                return
            else:
                reply.removals.setdefault(name.lower(), []).append(which)


def _take_additions(reply: Reply, value: object) -> None:
    for name, additions in _pairs(reply, "add_headers", value):
        for addition in _elements(additions):
            added = _addition(reply, name, addition)
            if added is None:
                continue
            if len(reply.additions) >= _EDITS:
                reply.complain(f"add_headers: more than {_EDITS}")
                return
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
        for address in value:
            if len(reply.envelope) >= _EDITS:
                return  # the log has no room for them
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
    for name, text in [("", value)] if members is None else members:
        if len(reply.spam_headers) >= _EDITS:
            reply.complain(f"spam_header: more than {_EDITS}")
            return
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
