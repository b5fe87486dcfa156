"""Correction of what programs that read a header disagree on: blanks behind names, odd blanks.

Readers have to accept this obsolete syntax (RFC 5322 section 4.5), and writers must not use it.
smtpd(8) and several programs that verify signatures take `From :` for another field than `From:`:
smtpd neither completes nor removes it, and adds a second Date beside `Date :`.

A CR that isn't part of a line end must not occur (RFC 5322 section 2.2), and smtpd delivers it.
Rspamd 3.4 ends the header at two of them, wherever they are; other programs take one for a line
end, or for nothing. Verifiers disagree whether CR, VT and FF are white space, which the relaxed
form of DKIM removes at the end of a field: to dkimpy they are, to Mail::DKIM and RFC 6376 they
aren't.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .headers import Headers

_BLANKS = bytes.maketrans(b"\r\v\f", b"   ")
_FIRST = re.compile(rb"\n[\r\v\f]")
_SPACED = re.compile(rb"\n([!-9;-~]++)[ \t]++:")


def correct_names(headers: Headers) -> bool:
    """Remove the blanks between names and colons; return whether there were any."""
    text = headers.text()
    corrected, at = bytearray(), 0
    for match in _SPACED.finditer(text):
        corrected += text[at : match.end(1)]
        at = match.end() - 1
    if at:
        corrected += text[at:]
        headers.replace_text(bytes(corrected))
    return bool(at)


def replace_stray_cr(headers: Headers) -> bool:
    """Replace each CR by a space; return whether there were any.

    Postfix does it as well (cleanup_replace_stray_cr_lf).
    """
    text = headers.text()
    if b"\r" not in text:
        return False
    headers.replace_text(text.replace(b"\r", b" "))
    return True


def replace_odd_blanks(headers: Headers) -> bool:
    """Replace each CR, VT and FF by a space; return whether there were any.

    One at the beginning of a line stays: such a line is no field and no continuation of one, and
    smtpd refuses the message.
    """
    text = headers.text()
    blanks = text.translate(_BLANKS)
    if blanks == text:
        return False
    replaced = bytearray(blanks)
    for match in _FIRST.finditer(text):
        replaced[match.end() - 1] = text[match.end() - 1]
    if replaced == text:
        return False
    headers.replace_text(bytes(replaced))
    return True
