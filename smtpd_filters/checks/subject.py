"""The tag of a subject, such as `[EXTERN]`.

Invariants
----------
*Once*: a subject that begins with the tag, perhaps behind `Re:` and the like, gets no second one,
however it is encoded.
*Nothing else*: all other bytes of the subject are kept, in their lines.
"""

from __future__ import annotations

import re

from smtpd_filters.message.folding import FOLD_AT, encoded_word
from smtpd_filters.message.headers import fields_named

from .author.encoded_words import decoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.message import Headers

_SUBJECT = re.compile(rb"subject[ \t]*:[ \t]*", re.IGNORECASE)
_WHITE = (b" ", b"\t")
#: Words of mail programs before the subject of an answer: Re:, AW:, Fwd:, RE[2]:, Antw:.
_ANSWER = re.compile(r"\s*+(?:\w{1,8}(?:\[\d{1,3}\])?\s?:\s*+){0,8}")
#: Characters of a subject that are searched for the tag.
_SEARCHED = 1000


def tag_subject(headers: Headers, tag: str) -> bool:
    """Put a tag before the subject; return whether it was not there.

    A message without a subject gets one.
    """
    subject = headers.get("Subject")
    if subject is None:
        headers.append("Subject", encoded_word(tag))
        return True
    if is_tagged(subject, tag):
        return False
    word = encoded_word(tag)
    if word.startswith("=?") and subject.startswith("=?"):
        # RFC 2047 section 6.2: white space between encoded words is not displayed.
        word = encoded_word(f"{tag} ")
    text = headers.text()
    old = next(fields_named(text, text.lower(), "Subject"))
    lines = _tagged(old[0][1:].split(b"\n") if subject else [b"Subject:"], word.encode())
    headers.replace_text(b"\n".join([text[: old.start()], *lines]) + text[old.end() :])
    return True


def _tagged(lines: list[bytes], tag: bytes) -> list[bytes]:
    """Return the lines of a subject, which isn't empty, with a tag before its text."""
    head = _SUBJECT.match(lines[0])
    name = lines[0][: head.end()] if head else b""
    rest = lines[0][len(name) :]
    first = name + (b"" if name.endswith(_WHITE) else b" ") + tag
    if not rest:  # the text begins on the next line
        return [first, *lines[1:]]
    if len(first) + 1 + len(rest) <= FOLD_AT:
        return [first + b" " + rest, *lines[1:]]
    return [first, b" " + rest, *lines[1:]]


def is_tagged(subject: str, tag: str) -> bool:
    """Return whether a subject has a tag at its beginning."""
    for reading in decoded(subject[:_SEARCHED]):
        text = reading.lstrip()
        if text.startswith(tag):
            return True
        answer = _ANSWER.match(text)
        if answer is not None and text.startswith(tag, answer.end()):
            return True
    return False
