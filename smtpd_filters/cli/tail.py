"""`smtpd-filters tail`: messages as they are decided."""

from __future__ import annotations

import json
import sys
from time import sleep, time
from typing import TYPE_CHECKING

from smtpd_filters.journal.records import AHEAD, Search
from smtpd_filters.journal.stories import OUTCOMES
from smtpd_filters.journal.telling import headline, plain, tell
from smtpd_filters.settings import INTEGER, LIST, SWITCH, TEXT, choice, option

from .journal_use import JournalOptions, in_colour, note_unread, reading
from .verb import Verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.journal.query import Journal
    from smtpd_filters.journal.stories import Story

#: Seconds between two looks.
INTERVAL = 0.5
#: Stories read at a time.
READ = 500


class Options(JournalOptions):
    """What to show."""

    outcome = option(
        LIST(choice(*OUTCOMES)),
        default=(),
        help="Only messages with these outcomes; deferred are those that were refused temporarily.",
    )
    filter = option(
        TEXT, default="", help="Only messages that this filter did not simply let pass."
    )
    match = option(
        TEXT,
        default="",
        help="Only messages whose line has this text, whatever its case: an address, a reason.",
    )
    number = option(INTEGER(low=0, high=10_000), default=10, help="How many past messages to show.")
    follow = option(SWITCH, default=True, help="Continue with new messages.")
    full = option(SWITCH, default=False, help="Show the whole story of each, as why does.")


def run(options: Options, _rest: list[str]) -> int:
    """Print messages until interrupted."""
    return reading(options, lambda journal: _tail(journal, options))


def _tail(journal: Journal, options: Options) -> int:
    marks = journal.marks()
    missed = options.follow and note_unread(journal)
    if options.follow and not missed and not any(mark.last for mark in marks.values()):
        VERB.note("the journal has no message yet; waiting for one")
    if options.number:
        wanted = Search(
            until=time() + AHEAD,
            outcomes=frozenset(options.outcome),
            filter=options.filter,
            limit=READ if options.match else options.number,
        )
        past = list(_chosen(reversed(journal.search(wanted)), options))
        _show(past[-options.number :], options)
    while options.follow:
        sys.stdout.flush()
        sleep(INTERVAL)
        _show(_chosen(journal.new(marks, READ), options), options)
    return 0


def _chosen(stories: Iterable[Story], options: Options) -> Iterable[Story]:
    for each in stories:
        if options.outcome and each.outcome not in options.outcome:
            continue
        if options.filter and not any(
            verdict.filter == options.filter and verdict.verb != "proceed"
            for verdict in each.verdicts
        ):
            continue
        if options.match and options.match.lower() not in headline(each).lower():
            continue
        yield each


def _show(stories: Iterable[Story], options: Options) -> None:
    colour = in_colour(options)
    for each in stories:
        if options.json:
            sys.stdout.write(f"{json.dumps(plain(each))}\n")
        elif options.full:
            sys.stdout.write(f"{tell(each, colour=colour)}\n")
        else:
            sys.stdout.write(f"{headline(each, colour=colour)}\n")


VERB = Verb(
    "tail",
    run,
    options=Options,
    description="Show messages as the journal gets them, a line for each. Interrupt it to end it.",
)
