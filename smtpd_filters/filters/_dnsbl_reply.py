"""What a client is told: a text with places for what is known only then.

The law:

1. A template is checked at the start: what it makes is a reply, whatever is put in.
2. Nothing that is put in is looked at for places again, and all of it is made safe.
"""

from __future__ import annotations

import re

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.decisions import reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: What there are places for, as smtpd.conf(5) writes its own: %{zone}.
PLACES = ("subject", "client", "zone", "text", "score")
_PLACE = re.compile(r"%\{([^}]*)\}")
_REPLY = re.compile(r"([45][0-9][0-9]) (?:([45]\.[0-9]{1,3}\.[0-9]{1,3}) )?(.*)", re.DOTALL)


class Template:
    """A reply with places."""

    __slots__ = ("_code", "_enhanced", "_text", "wants_text")

    def __init__(self, text: str) -> None:
        """Raise ConfigError for a text that makes no reply."""
        found = _REPLY.fullmatch(text)
        if not found or not found[3].strip():
            raise ConfigError(
                "--reply: expected a code from 400 to 599, a space and a text, such as "
                '"550 5.7.1 %{subject} is listed by %{zone}"'
            )
        for place in _PLACE.findall(text):
            if place not in PLACES:
                known = ", ".join(f"%{{{name}}}" for name in PLACES)
                raise ConfigError(f"--reply: there is no %{{{place}}}, only {known}")
        self._code, self._enhanced, self._text = int(found[1]), found[2] or "", found[3]
        if self._enhanced and self._enhanced[0] != found[1][0]:
            raise ConfigError("--reply: the code and the enhanced code begin with one digit")
        #: Whether the list's own text has a place in it.
        self.wants_text = "%{text}" in text

    def fill(self, values: Mapping[str, str]) -> str:
        """Put values in; what isn't given is left out."""
        text = _PLACE.sub(lambda place: values.get(place[1], ""), self._text)
        return reply(self._code, self._enhanced, text)
