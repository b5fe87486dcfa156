"""What a client is told: a text with places for what is known only then.

The law:

1. A template is checked at the start: what it makes is a reply, whatever is put in.
2. Nothing that is put in is looked at for places again, and all of it is made safe.
3. What the list itself says of whom it lists, its TXT record, is asked for when somebody is told,
   and waited for so long; keys are taken out of it.
"""

from __future__ import annotations

import re

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.decisions import reply

from . import codes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from smtpd_filters.lookups.dns import Resolver

    from .inquiry import Inquiry

#: What there are places for, as smtpd.conf(5) writes its own: %{zone}.
PLACES = ("subject", "client", "zone", "text", "score")
_OURS = "%{subject} is listed by %{zone}"
#: Seconds for which a refusal waits for what the list says.
_TEXT_TIME = 2.0
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


class Reply:
    """What somebody is told who is refused."""

    def __init__(self, given: str, code: int, resolver: Resolver) -> None:
        """`given` is the operator's template, `code` that of the reply if there is none.

        Raises ConfigError for a template that makes no reply.
        """
        # X.7.1 is "Delivery not authorized, message refused".
        ours = f"{code} 5.7.1 {_OURS}"
        self._template = Template(given or f"{ours}; %{{text}}")
        self._bare = self._template if given else Template(ours)
        self._resolver = resolver

    def is_known(self, inquiry: Inquiry) -> bool:
        """Whether nothing need be looked up for it."""
        return self._text(inquiry) is not None

    async def look_up(self, inquiry: Inquiry) -> None:
        """Look up what the list says, if that takes no longer than it may."""
        import asyncio  # it is there already where there is a resolver

        try:
            async with asyncio.timeout(_TEXT_TIME):
                await self._resolver.txt(inquiry.gravest.question.name)
        except TimeoutError:
            pass

    def of(self, inquiry: Inquiry, client: str) -> str:
        """The reply; `client` is the client's address."""
        text = self._text(inquiry)
        listing = inquiry.gravest
        template = self._template if text else self._bare
        return template.fill(
            {
                "subject": listing.question.subject,
                "client": client,
                "zone": listing.question.list.shown,
                "text": text or "",
                "score": str(inquiry.tally.score),
            }
        )

    def _text(self, inquiry: Inquiry) -> str | None:
        """What the list says of whom it lists; None if that isn't known yet."""
        from smtpd_filters.lookups.outcome import Found  # not for --help

        if not self._template.wants_text:
            return ""
        listing = inquiry.gravest
        outcome = self._resolver.known(listing.question.name, "TXT")
        if outcome is None:
            return None
        text = b" ".join(outcome.records) if isinstance(outcome, Found) else b""
        return codes.redact(text.decode("utf-8", "replace"), listing.question.list.secrets)
