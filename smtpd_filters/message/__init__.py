"""Mail messages: header blocks that can be edited, and spooled bodies.

`Headers` edits a header block and preserves every byte outside the edits; `Message` holds a whole
message, with its body spooled. `folding` makes the values of new fields safe and folds them;
`completion` completes From, To and Cc as smtpd does after the filters; filters that
need it import it from there.
"""

from __future__ import annotations

from . import disguise  # noqa: F401  # loaded at start, not at the first message
from .body import Body
from .dots import stuff, unstuff
from .folding import encoded_word
from .headers import Field, Headers
from .message import Message
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
