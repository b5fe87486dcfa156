"""The field Authentication-Results (RFC 8601): written, parsed, and recognised if it is forged.

Invariants
----------
*Own results only*: whatever the texts are that a result is made of, the field states this result
and no other: values are quoted, control characters replaced.
*Forgeries are found*: a field from outside that some reader may attribute to our own id is
recognised (`claims`), in whatever spelling.
*Linear*: every function takes time proportional to its text.
"""

from __future__ import annotations

from .forged import claims, is_name, remove_forged
from .reader import parse
from .writer import FIELD, Result, Results, write

__all__ = ["FIELD", "Result", "Results", "claims", "is_name", "parse", "remove_forged", "write"]
