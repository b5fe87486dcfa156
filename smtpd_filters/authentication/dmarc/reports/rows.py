"""The rows of a report and the policy that it is about, as they are stored.

A message is a row of the report for the domain of its policy. Equal rows are counted together.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

#: Bytes of a stored row or policy: that of a value in a store.
MAX_STORED = 4096
#: Bytes of a text that explains a result, and of a name, as they are stored.
MAX_TEXT, MAX_NAME = 120, 255
_CUT = "..."


@dataclass(frozen=True, slots=True)
class Published:
    """A policy that was applied, found at `domain`.

    `p`, `sp` and `np` are policies, "" if the record has none; `adkim` and `aspf` are r or s,
    `testing` y or n. `rua` are the URIs for reports.
    """

    domain: str
    p: str = ""
    sp: str = ""
    np: str = ""
    adkim: str = "r"
    aspf: str = "r"
    testing: str = "n"
    fo: str = ""
    rua: tuple[str, ...] = ()

    def stored(self) -> bytes:
        """Return it as bytes, of at most `MAX_STORED`: without its last URIs if necessary."""
        return _fitted(asdict(self), "rua")

    @classmethod
    def restored(cls, data: bytes) -> Published:
        """Return what `stored` returned. Raises ValueError."""
        values = _values(data, cls.__slots__)
        values["rua"] = _texts(values["rua"])
        return cls(**_checked(values, "rua"))


@dataclass(frozen=True, slots=True)
class Row:
    """What is reported of a message.

    `source` is the client's address, `header_from` the author's domain, `envelope_from` that of
    the sender. `disposition` is none, pass, quarantine or reject; `dkim` and `spf` tell whether an
    aligned identifier passed. `reasons` are the types and comments of RFC 9990, why the disposition
    is not the policy. `signatures` are domain, selector, result and reason of DKIM signatures, and
    `sender` domain, result and reason of SPF, empty if it was not evaluated.
    """

    source: str
    header_from: str
    envelope_from: str
    disposition: str
    dkim: bool
    spf: bool
    reasons: tuple[tuple[str, str], ...] = ()
    signatures: tuple[tuple[str, str, str, str], ...] = ()
    sender: tuple[str, ...] = ()

    def stored(self) -> bytes:
        """Return it as bytes, of at most `MAX_STORED`: without its last signatures if necessary."""
        return _fitted(asdict(self), "signatures")

    @classmethod
    def restored(cls, data: bytes) -> Row:
        """Return what `stored` returned. Raises ValueError."""
        values = _values(data, cls.__slots__)
        for name, length in (("reasons", 2), ("signatures", 4)):
            values[name] = tuple(_texts(each, length) for each in _list(values[name]))
        values["sender"] = _texts(values["sender"], 3) if values["sender"] else ()
        if not (type(values["dkim"]) is type(values["spf"]) is bool):
            raise ValueError("not a result")
        return cls(**_checked(values, "reasons", "signatures", "sender", "dkim", "spf"))


def cut(text: str, length: int = MAX_TEXT) -> str:
    """Return a text of at most so many bytes as it is stored, where a character takes up to 12."""
    if len(text) <= length and _size(text) <= length:
        return text
    left = length - len(_CUT)
    for at, char in enumerate(text):
        left -= _size(char)
        if left < 0:
            return text[:at] + _CUT
    return text


def _size(text: str) -> int:
    return len(json.dumps(text)) - len('""')


def _fitted(values: dict[str, Any], name: str) -> bytes:
    """Return values as bytes, of at most `MAX_STORED`; the last ones of a list are left out."""
    while len(data := _bytes(values)) > MAX_STORED and values[name]:
        values[name] = values[name][:-1]
    return data


def _bytes(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":"), sort_keys=True).encode("ascii")


def _values(data: bytes, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(values, dict) or set(values) != set(names):
        raise ValueError("stored by another version")
    return values


def _checked(values: dict[str, Any], *others: str) -> dict[str, Any]:
    """Return values; raise ValueError unless all but some are texts."""
    _texts([value for name, value in values.items() if name not in others])
    return values


def _texts(value: object, length: int | None = None) -> tuple[str, ...]:
    """Return a list of texts as a tuple; raise ValueError if it isn't one, or of another length."""
    items = _list(value)
    texts = tuple(each for each in items if isinstance(each, str))
    if len(texts) != len(items) or length not in {None, len(texts)}:
        raise ValueError("not texts")
    return texts


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("not a list")  # noqa: TRY004  # of what is stored
    return value
