"""Outcomes of look-ups on record, as JSON.

`{"f": records, "g": gap}` is what was found, `{"n": reason}` what was not, and `{"u": cause}` what
was unavailable.
"""

from __future__ import annotations

from smtpd_filters.lookups.outcome import MX, Found, NotFound, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from smtpd_filters.lookups.outcome import Outcome

    Record = dict[str, Any]


def encode(outcome: Outcome[Any], rdtype: str) -> Record:
    """Return the record of an outcome; without its TTL, which says nothing later."""
    if isinstance(outcome, NotFound):
        return {"n": outcome.reason}
    if isinstance(outcome, Unavailable):
        return {"u": outcome.cause}
    records: list[Any] = list(outcome.records)
    if rdtype == "MX":
        records = [[each.preference, each.exchange] for each in records]
    elif rdtype == "TXT":
        records = [each.decode("latin-1") for each in records]
    return {"f": records, **({"g": outcome.gap} if outcome.gap else {})}


def decode(record: Record, rdtype: str) -> Outcome[Any]:
    """Return the outcome of a record. Raises ValueError, KeyError or TypeError if it is invalid."""
    if "n" in record:
        return NotFound(str(record["n"]))
    if "u" in record:
        return Unavailable(str(record["u"]))
    records: list[Any] = [*record["f"]]
    if not records:
        raise ValueError("no records")
    if rdtype == "MX":
        records = [MX(int(preference), str(exchange)) for preference, exchange in records]
    elif rdtype == "TXT":
        records = [each.encode("latin-1") for each in records]
    elif not all(isinstance(each, str) for each in records):
        raise TypeError("expected texts")
    return Found(tuple(records), 0.0, str(record.get("g", "")))
