"""The milter protocol, versions 2 to 6, without I/O: the MTA's side and the milter's.

There is no standard. The sources are libmilter of Sendmail 8.17 (its manual and its behaviour) and
the behaviour of Postfix 3.10. `MtaSide` is used by filter-milter; `MilterSide` plays milters in
tests and benchmarks. `vocabulary` has the bytes and bits, `codec` frames packets, `answers` has
what a milter may say, `negotiation` what the two agree on, and `header_edits` applies edits to a
header block.
"""

from .answers import (
    AddHeader,
    AddRecipient,
    Answer,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    Edit,
    InsertHeader,
    NewBody,
    Quarantine,
    ReplyCode,
    Verdict,
)
from .codec import MilterError, Packets, packet
from .header_edits import EditedHeaders
from .milter_side import Event, MilterSide
from .mta_side import Limits, MtaSide
from .negotiation import Agreement, Offer

__all__ = [
    "AddHeader",
    "AddRecipient",
    "Agreement",
    "Answer",
    "ChangeHeader",
    "ChangeSender",
    "DeleteRecipient",
    "Edit",
    "EditedHeaders",
    "Event",
    "InsertHeader",
    "Limits",
    "MilterError",
    "MilterSide",
    "MtaSide",
    "NewBody",
    "Offer",
    "Packets",
    "Quarantine",
    "ReplyCode",
    "Verdict",
    "packet",
]
