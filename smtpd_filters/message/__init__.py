"""The message: its header block, its fields, its body; pure.

`Headers` edits a header block and keeps every byte it isn't told to change; `Message` holds a
whole message, its body spooled. What goes into a field is made safe and folded in `folding`.
"""

from __future__ import annotations

from smtpd_filters.message.dots import stuff, unstuff
from smtpd_filters.message.folding import encoded_word
from smtpd_filters.message.head import Head
from smtpd_filters.message.headers import Field, Headers
from smtpd_filters.message.spool import Message, SpoolError

__all__ = [
    "Field",
    "Head",
    "Headers",
    "Message",
    "SpoolError",
    "encoded_word",
    "stuff",
    "unstuff",
]
