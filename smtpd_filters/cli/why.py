"""`smtpd-filters why`: what became of a message, and which filter decided."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from smtpd_filters.journal.records import Search
from smtpd_filters.journal.telling import plain, tell
from smtpd_filters.settings import INTEGER, TEXT, operand, option
from smtpd_filters.settings.quoting import printable

from .journal_use import DAY, SINCE, JournalOptions, in_colour, reading, since
from .streams import print_json
from .verb import Verb

if TYPE_CHECKING:
    from smtpd_filters.journal.query import Journal
    from smtpd_filters.journal.stories import Story


class Options(JournalOptions):
    """What to look for."""

    what = operand(
        TEXT,
        required=True,
        metavar="WHAT",
        help="A mail address, a part of one, a domain as @example.org, the address or network of a "
        "client, its name, a user, a Message-ID, smtpd's id of a session or a message, or that of "
        "a story in the journal.",
    )
    since = option(SINCE, default=2 * DAY, help="How far back to look.")
    number = option(INTEGER(low=1, high=10_000), default=20, help="How many messages at most.")


def run(options: Options, _rest: list[str]) -> int:
    """Print the stories; return 1 if there are none."""
    return reading(options, lambda journal: _why(journal, options), finds=True)


def _why(journal: Journal, options: Options) -> int:
    wanted = Search(text=options.what, since=since(options.since), limit=options.number)
    named = journal.story(options.what)
    found = [named] if named else whole(journal, journal.search(wanted))
    if options.json:
        print_json([plain(each) for each in found])
    else:
        colour = in_colour(options)
        sys.stdout.write("\n".join(tell(each, colour=colour) for each in found))
        if not found:
            age = SINCE.show(options.since)
            text = f"{printable(options.what)}: nothing in the journal within {age} (--since)"
            sys.stdout.write(f"{text}\n")
    return 0 if found else 1


def whole(journal: Journal, stories: list[Story]) -> list[Story]:
    """Join parts of one transaction that were stored separately, in one file."""
    found: dict[tuple[str, str, str], Story] = {}
    for each in stories:
        file = each.id.rpartition("-")[0]
        key = file, each.session, each.msgid or each.id
        if key not in found:
            found[key] = (journal.story(each.id) if each.msgid else None) or each
    return list(found.values())


VERB = Verb(
    "why",
    run,
    options=Options,
    description="Tell why a message was refused, marked or accepted: who sent it, from where, what "
    "each filter decided, what smtpd answered, and which setting decided. The newest comes first. "
    "The journal must run, see smtpd-filters journal.",
    ending="The exit status is 1 if nothing is found.",
)
