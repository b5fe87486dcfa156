"""smtpd's completion of From, To and Cc, restated character by character.

It is slow and independent of `smtpd_filters.message.completion`: tests compare that with this
module, and this module with real servers.
"""

from __future__ import annotations

_FIELDS = frozenset({b"from", b"to", b"cc"})
_SPACES = b" \t\n\v\f\r"


def completed(lines: list[bytes], host: bytes, *, old: bool = False) -> list[bytes]:
    """Return the lines of a header block as smtpd delivers them; `host` is the listener's name.

    `old` selects the rule of 6.8, in which a backslash inside quotes has no effect.
    """
    result: list[bytes] = []
    at = 0
    while at < len(lines):
        end = at + 1
        while end < len(lines) and lines[end][:1] in (b" ", b"\t"):
            end += 1
        name, colon, value = b"\n".join(lines[at:end]).partition(b":")
        if colon and name.lower() in _FIELDS:
            whole = name + colon + _list(value + b"\n", host, old=old)
            result += whole.removesuffix(b"\n").split(b"\n")
        else:
            result += lines[at:end]
        at = end
    return result


class _State:
    """The lexical state: inside a quote, inside a comment, after a backslash."""

    def __init__(self, *, escapes_in_quotes: bool = False) -> None:
        self._escapes_in_quotes = escapes_in_quotes
        self.quote = False
        self.comment = 0
        self.escape = False

    def step(self, character: bytes) -> None:
        if character == b"(" and not self.escape and not self.quote:
            self.comment += 1
        if character == b'"' and not self.escape and not self.comment:
            self.quote = not self.quote
        if character == b")" and not self.escape and not self.quote and self.comment:
            self.comment -= 1
        escapes = not self.comment and (self._escapes_in_quotes or not self.quote)
        self.escape = character == b"\\" and not self.escape and escapes

    @property
    def plain(self) -> bool:
        return not self.comment and not self.quote and not self.escape


def _list(value: bytes, host: bytes, *, old: bool) -> bytes:
    state = _State(escapes_in_quotes=not old)
    elements = [b""]
    for at in range(len(value)):
        character = value[at : at + 1]
        state.step(character)
        if character == b"," and state.plain:
            elements.append(b"")
        else:
            elements[-1] += character
    return b",".join([_element(each, host) for each in elements])


class _Element:
    """One element of a list, scanned."""

    def __init__(self, text: bytes) -> None:
        self._state = _State()
        self.has_bracket = self._is_open = self._is_complete = False
        self.closed = self.last = 0
        for at in range(len(text)):
            character = text[at : at + 1]
            self._state.step(character)
            if self._state.plain:
                self._process(character, at)
            if not self._state.comment and character != b")" and character not in _SPACES:
                self.last = at

    def _process(self, character: bytes, at: int) -> None:
        if character == b"<" and not self._is_open:
            self._is_open = self.has_bracket = True
        elif character == b">" and self._is_open:
            self._is_open = False
            self.closed = at
        elif character in (b"@", b":"):
            self._is_complete = True

    @property
    def stays(self) -> bool:
        return not self._state.plain or self._is_open or self._is_complete


def _element(text: bytes, host: bytes) -> bytes:
    element = _Element(text)
    if element.stays:
        return text
    at = element.last
    if element.has_bracket:
        at = element.closed - 1
        while text[at : at + 1] in _SPACES:
            at -= 1
    before = text[at : at + 1]
    # There is no address to complete, in the brackets or in the element.
    if before == b"<" if element.has_bracket else before in _SPACES:
        return text
    return text[: at + 1] + b"@" + host + text[at + 1 :]
