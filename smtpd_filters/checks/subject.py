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
from smtpd_filters.message.headers import Field, fields_named

from .author.encoded_words import decoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.message import Headers

_SUBJECT = re.compile(rb"subject[ \t]*:[ \t]*", re.IGNORECASE)
_WHITE = (b" ", b"\t")
#: Words of mail programs before the subject of an answer: Re:, AW:, Fwd:, RE[2]:, Antw:.
_ANSWER = re.compile(r"\s*+(?:\w{1,8}(?:\[\d{1,3}\])?\s?:\s*+){0,8}")
#: Bytes that aren't UTF-8.
_ESCAPED = re.compile("[\udc80-\udcff]")
#: Characters of a subject that are searched for the tag.
_SEARCHED = 1000
#: Characters of a tag, with which its encoded words are one line (RFC 5322 section 2.1.1).
TAG_MAX = 120
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]+")


def tag_subject(headers: Headers, tag: str) -> bool:
    """Put a tag before the subject; return whether it was not there.

    A message without a subject gets one. Of several subjects the first and the last get the tag,
    since programs show one of them. A subject that begins with the tag, perhaps behind `Re:`,
    stays. The tag is any text; control characters become blanks, and of a longer one the first 120
    characters count.
    """
    tag = re.sub(_CONTROL, " ", tag).strip()[:TAG_MAX]
    if not tag:
        return False
    text = headers.text()
    first = last = None
    for last in fields_named(text, text.lower(), "Subject"):  # there may be 16,000
        first = first or last
    if first is None or last is None:
        headers.append("Subject", encoded_word(tag))
        return True
    done = False
    for old in dict.fromkeys((last, first)):  # from below, so that places stay
        raw = old[0][1:]
        subject = Field(raw).value
        if is_tagged(subject, tag):
            continue
        word = encoded_word(tag)
        if word.startswith("=?") and subject.startswith("=?"):
            # RFC 2047 section 6.2: white space between encoded words is not displayed.
            word = encoded_word(f"{tag} ")
        lines = _tagged(raw.split(b"\n") if subject else [b"Subject:"], word.encode())
        text = b"\n".join([text[: old.start()], *lines]) + text[old.end() :]
        done = True
    if done:
        headers.replace_text(text)
    return done


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
    """Return whether a subject has a tag at its beginning, in whatever way a program reads it.

    Some programs have a blank between encoded words, maybe within the tag. A reading with bytes
    that aren't UTF-8 is that of a program without the character set, which doesn't count beside
    others.
    """
    readings = decoded(subject[:_SEARCHED])
    if not any(_begins(each.lstrip(), tag) for each in readings):
        return False
    known = [each for each in readings if not _ESCAPED.search(each)]
    wanted = "".join(tag.split())
    return all(_begins("".join(each.split()), wanted) for each in known or readings)


def _begins(text: str, tag: str) -> bool:
    if text.startswith(tag):
        return True
    answer = _ANSWER.match(text)
    return answer is not None and text.startswith(tag, answer.end())
