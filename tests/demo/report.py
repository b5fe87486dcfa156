"""The table that the demonstration prints, and the line that sums it up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.demo.neighbours import INBOX, JUNK, NOWHERE, REFUSED, Outcome
from tests.demo.sheet import Entry, Painter, lines_of, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.demo.sheet import Cell

COLOURS = {
    "proceed": "green",
    "junk": "yellow",
    "reject": "red",
    "disconnect": "red",
    INBOX: "green",
    JUNK: "yellow",
    REFUSED: "red",
    NOWHERE: "red",
}


def show(outcomes: Sequence[Outcome], width: int, paint: Painter, rule: str) -> list[str]:
    """Return the table and its legend."""
    head = ("Who sent what", "What the filters said, and why", "SMTP reply", "Went to")
    rows = [_row(each) for each in outcomes]
    legend = [
        Entry("proceed", "no objection", COLOURS["proceed"]),
        Entry("junk", "goes on, and is filed in the folder Junk", COLOURS["junk"]),
        Entry("reject", "refused with a reply", COLOURS["reject"]),
        Entry("not asked", "once a filter has objected, smtpd asks no other in that phase", "dim"),
    ]
    explained = [line for entry in legend for line in lines_of(entry, width, paint)]
    return [*table(head, rows, width, paint, rule), "", *explained]


def _row(each: Outcome) -> list[Cell]:
    neighbour = each.neighbour
    who = [
        Entry(neighbour.who, style="bold"),
        Entry(neighbour.address),
        Entry("(no name)" if each.rdns == "<unknown>" else each.rdns, style="dim"),
        Entry(f"<{neighbour.sender}>"),
    ]
    opinions = [
        Entry(said.verb, f"{said.filter}: {said.reason}", COLOURS[said.verb])
        for said in each.said
        if said.verb != "proceed"
    ]
    if content := list(dict.fromkeys(said.filter for said in each.said if said.verb == "proceed")):
        opinions.append(Entry("proceed", ", ".join(content), COLOURS["proceed"]))
    if each.silent:
        opinions.append(Entry(f"not asked: {', '.join(each.silent)}", style="dim"))
    reply = [
        Entry(each.answered.reply),
        Entry(f"at {each.answered.command}", style="dim"),
    ]
    user = neighbour.recipient.partition("@")[0]
    delivered = each.place in {INBOX, JUNK}
    where = [Entry(f"{user}: {each.place}" if delivered else each.place, style=COLOURS[each.place])]
    if not each.as_expected:
        where.append(Entry(f"EXPECTED {neighbour.expected}", style="red"))
    return [who, opinions, reply, where]


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Return the count of what became of the messages."""
    words = {INBOX: "delivered", JUNK: "junk", REFUSED: "refused", NOWHERE: "lost"}
    places = [each.place for each in outcomes]
    counts = [f"{places.count(place)} {word}" for place, word in words.items() if place in places]
    return f"{len(outcomes)} messages: {', '.join(counts)}, in {seconds:.1f} s."


def unexpected(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each message that went where it should not."""
    return [
        f"NOT AS EXPECTED: {each.neighbour.who}: {each.place}, not {each.neighbour.expected}"
        for each in outcomes
        if not each.as_expected
    ]
