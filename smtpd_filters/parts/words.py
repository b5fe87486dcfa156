"""The encoded words of a field, decoded within the budget of the event loop."""

from __future__ import annotations

from smtpd_filters.checks.author.encoded_words import readings
from smtpd_filters.runtime.pace import paced


async def read_words(text: str) -> tuple[str, ...]:
    """Return the value of a field with its encoded words (RFC 2047) decoded: a subject, a name.

    There are several texts where mail programs disagree: about a character set, or what is between
    the words. The first is what most show. Bytes that aren't UTF-8 become surrogate escapes. No
    text raises an exception. Of one of more than 4,096 characters the beginning is decoded, and the
    last of the texts is the whole as it is written.
    """
    return await paced(readings(text))
