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
    text = b"\n".join([b"", *headers.lines()])
    corrected, count = _SPACED.subn(rb"\n\1:", text)
    if count:
        headers.replace_lines(corrected.split(b"\n")[1:])
    return bool(count)
