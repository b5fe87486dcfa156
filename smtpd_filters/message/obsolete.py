"""Correction of field names that are followed by blanks, as in `From :`.

Readers have to accept this obsolete syntax (RFC 5322 section 4.5), and writers must not use it.
smtpd(8) and several programs that verify signatures take `From :` for another field than `From:`:
smtpd neither completes nor removes it, and adds a second Date beside `Date :`.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .headers import Headers

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
