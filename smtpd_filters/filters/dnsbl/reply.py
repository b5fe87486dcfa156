"""The SMTP reply for a listed client, made from a template with placeholders.

Invariants
----------
*Checked at start*: a template is validated at start: whatever the values, it makes a valid reply.
*Values are data*: values are not searched for placeholders, and are all made safe.
*Text on demand*: the list's own text, its TXT record, is looked up for refusals only, within a time
limit. Keys are redacted.
"""

from __future__ import annotations

import re

from smtpd_filters.checks import zone_names
from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.decisions import reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from smtpd_filters.lookups.dns import Resolver

    from .inquiry import Inquiry

#: The placeholders, written like those of smtpd.conf(5): %{zone}.
PLACES = ("subject", "client", "zone", "text", "score")
_OURS = "%{subject} is listed by %{zone}"
#: The seconds for which a refusal waits for the list's text.
_TEXT_TIME = 2.0
_PLACE = re.compile(r"%\{([^}]*)\}")
_REPLY = re.compile(r"([45][0-9][0-9]) (?:([45]\.[0-9]{1,3}\.[0-9]{1,3}) )?(.*)", re.DOTALL)


class Template:
    """A reply with placeholders."""

    __slots__ = ("_code", "_enhanced", "_text", "wants_text")

    def __init__(self, text: str) -> None:
        """Parse a template; raise ConfigError if it makes no valid reply."""
        found = _REPLY.fullmatch(text)
        if not found or not found[3].strip():
            raise ConfigError(
                "--reply: expected a code from 400 to 599, a space and a text, such as "
                '"550 5.7.1 %{subject} is listed by %{zone}"'
            )
        for place in _PLACE.findall(text):
            if place not in PLACES:
                known = ", ".join(f"%{{{name}}}" for name in PLACES)
                raise ConfigError(f"--reply: unknown placeholder %{{{place}}}: expected {known}")
        self._code, self._enhanced, self._text = int(found[1]), found[2] or "", found[3]
        if self._enhanced and self._enhanced[0] != found[1][0]:
            raise ConfigError("--reply: the code and the enhanced code must begin with one digit")
        #: Whether the template contains the list's text.
        self.wants_text = "%{text}" in text

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the reply with these values; missing ones are empty."""
        text = _PLACE.sub(lambda place: values.get(place[1], ""), self._text)
        return reply(self._code, self._enhanced, text)


class Reply:
    """The SMTP reply for a listed client."""

    def __init__(self, given: str, code: int, resolver: Resolver) -> None:
        """Take the operator's template, if any, or the default one with `code`.

        Raises ConfigError if it makes no valid reply.
        """
        # X.7.1 is "Delivery not authorized, message refused".
        ours = f"{code} 5.7.1 {_OURS}"
        self._template = Template(given or f"{ours}; %{{text}}")
        self._bare = self._template if given else Template(ours)
        self._resolver = resolver

    def is_known(self, inquiry: Inquiry) -> bool:
        """Return whether the reply needs no look-up."""
        return self._text(inquiry) is not None

    async def look_up(self, inquiry: Inquiry) -> None:
        """Look up the list's text, for `_TEXT_TIME` seconds at most."""
        import asyncio  # already loaded by the resolver

        try:
            async with asyncio.timeout(_TEXT_TIME):
                await self._resolver.txt(inquiry.gravest.question.name)
        except TimeoutError:
            pass

    def of(self, inquiry: Inquiry, client: str) -> str:
        """Return the reply; `client` is the client's address."""
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
        """Return the list's text about the subject; None if it has to be looked up."""
        from smtpd_filters.lookups.outcome import Found  # not needed for --help

        if not self._template.wants_text:
            return ""
        listing = inquiry.gravest
        outcome = self._resolver.known(listing.question.name, "TXT")
        if outcome is None:
            return None
        text = b" ".join(outcome.records) if isinstance(outcome, Found) else b""
        return zone_names.redact(text.decode("utf-8", "replace"), listing.question.list.secrets)
