"""The message: its header block, its fields, its body; pure.

`Headers` edits a header block and keeps every byte it isn't told to change; `Message` holds a
whole message, its body spooled. What goes into a field is made safe and folded in `folding`; what
smtpd does to From, To and Cc behind the filters, `completion` does beforehand; it is imported from
there by the filters that need it.
"""

from __future__ import annotations

from .dots import stuff, unstuff
from .folding import encoded_word
from .headers import Field, Headers
from .message import Body, Message
from .spool import Spool, SpoolError

__all__ = [
    "Body",
    "Field",
    "Headers",
    "Message",
    "Spool",
    "SpoolError",
    "encoded_word",
    "stuff",
    "unstuff",
]
