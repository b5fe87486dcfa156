"""The past of a trial: the sessions of the last day from recordings, and the journal's verdicts.

Invariants
----------
*Bounded*: the newest `most` sessions of at most `room` bytes of recordings are taken, and
for them at most `MAX_STORIES` stories of the journal.
"""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.errors import ConfigError
from smtpd_filters.journal.query import Journal, TooSlowError
from smtpd_filters.journal.records import Search
from smtpd_filters.journal.stories import address_of
from smtpd_filters.lookups.dns.records import decode
from smtpd_filters.recording import Recording
from smtpd_filters.recording.format import FROM_SMTPD, LOOKUP, REMARK
from smtpd_filters.settings.files import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.journal.stories import Story

MAX_SESSIONS, MAX_BYTES, MAX_STORIES = 2000, 24 << 20, 10_000
#: Seconds of the past.
DAY = 86400.0
#: Seconds by which a session may have begun before its first story.
_MARGIN = 3600.0
_PER_QUERY = 500


class Session(NamedTuple):
    """A recorded session."""

    id: str
    #: When it began, in seconds since 1970, and from where.
    time: float
    client: str
    #: smtpd's configuration, and the lines of the session, as in a recording.
    head: tuple[tuple[str, bytes], ...]
    entries: list[tuple[str, bytes]]


class Past(NamedTuple):
    """What is known of the last day."""

    sessions: list[Session]
    #: Sessions and files that were left out.
    left_out: int
    without_body: bool
    #: Verdicts by session and filter: the id of the message, phase, address, verb, reply, reason,
    #: thousandths of a point, flags, and how often.
    verdicts: dict[str, dict[str, list[list[Any]]]]
    #: The phases at which the journal has verdicts of a filter.
    phases: dict[str, list[str]]
    #: Look-ups by question, as `lookups.dns.records` has them.
    lookups: dict[str, Any]


def read(  # noqa: PLR0913  # keyword-only: one for each limit
    recordings: str,
    directory: str,
    key: bytes,
    now: float,
    *,
    most: int = MAX_SESSIONS,
    room: int = MAX_BYTES,
) -> Past:
    """Read the recordings of a directory, and the journal of another. Raises ConfigError.

    `most` sessions are taken at most, of recordings that have `room` bytes together.
    """
    lookups: dict[str, Any] = {}
    sessions, left_out, without_body = _sessions(recordings, now, lookups, most, room)
    verdicts, phases = _verdicts(directory, key, sessions, now)
    return Past(sessions, left_out, without_body, verdicts, phases, lookups)


def _sessions(
    directory: str, now: float, lookups: dict[str, Any], most: int, room: int
) -> tuple[list[Session], int, bool]:
    """Return the newest sessions, in the order of their beginnings; add to the look-ups."""
    found: list[Session] = []
    left_out = taken = 0
    without_body = False
    for path, size in _files(directory, now):
        if taken + size > room or len(found) >= most:
            left_out += 1
            continue
        taken += size
        try:
            recording = Recording.read(_whole_lines(path, room), path)
        except FileNotFoundError:  # it was deleted meanwhile
            continue
        except (OSError, ConfigError):  # it can't be read, or is damaged
            left_out += 1
            continue
        if "names" in recording.meta:
            raise ConfigError("the recordings have pseudonyms, by which no filter can judge")
        without_body |= "body" in recording.meta
        of_file = [each for each in _split(recording) if each.time >= now - DAY]
        found += of_file
        lookups.update({**_lookups(recording), **lookups})  # the newest counts
    found.sort(key=lambda each: each.time)
    left_out += max(len(found) - most, 0)
    return found[-most:], left_out, without_body


def _files(directory: str, now: float) -> list[tuple[str, int]]:
    """Return paths and sizes of the last day's recordings, the newest first."""
    found = []
    try:
        with os.scandir(directory) as entries:
            paths = [entry.path for entry in entries if entry.name.endswith(".session")]
    except OSError as error:
        raise ConfigError(f"the recordings can't be read: {error.strerror}") from None
    for path in paths:
        try:
            status = os.lstat(path)
        except OSError:  # it was deleted meanwhile
            continue
        if stat.S_ISREG(status.st_mode) and status.st_mtime >= now - DAY:
            found.append((status.st_mtime, path, status.st_size))
    return [(path, size) for _, path, size in sorted(found, reverse=True)]


def _whole_lines(path: str, room: int) -> bytes:
    """Return the content of a file that may still be written, without an unfinished line."""
    with open_file(path, os.O_NOFOLLOW) as file:
        data = file.read(room)
    return data[: data.rfind(b"\n") + 1]


def _split(recording: Recording) -> Iterator[Session]:
    """Yield the sessions of a recording."""
    head: list[tuple[str, bytes]] = []
    entries: dict[bytes, list[tuple[str, bytes]]] = {}
    begun: dict[bytes, tuple[float, str]] = {}
    for entry in recording.entries:
        direction, line = entry
        fields = line.split(b"|", 9)
        if direction == FROM_SMTPD and fields[0] == b"config":
            head.append(entry)
        elif direction == FROM_SMTPD and len(fields) > 6 and fields[4] == b"link-connect":
            try:
                begun[fields[5]] = float(fields[2]), _client(line)
            except ValueError:
                continue
            entries[fields[5]] = [entry]
        elif direction != REMARK:
            # The session is behind the token before protocol 0.5.
            at = 5 if direction == FROM_SMTPD else 1
            for session in fields[at : at + 2]:
                if session in entries:
                    entries[session].append(entry)
                    break
    for session, lines in entries.items():
        time, client = begun[session]
        yield Session(session.decode("latin-1"), time, client, tuple(head), lines)


def _lookups(recording: Recording) -> dict[str, Any]:
    """Return the recorded look-ups."""
    found: dict[str, Any] = {}
    for direction, line in recording.entries:
        if direction == REMARK and line.startswith(LOOKUP):
            try:
                rdtype, name, record = json.loads(line.removeprefix(LOOKUP))
                decode(record, rdtype)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue  # of another release, or damaged
            if isinstance(rdtype, str) and isinstance(name, str):
                found[f"{rdtype} {name}"] = record
    return found


def _client(line: bytes) -> str:
    """Return the client's address from the report `link-connect`."""
    return address_of(line.split(b"|")[-2].decode("utf-8", "replace"))


def _verdicts(
    directory: str, key: bytes, sessions: list[Session], now: float
) -> tuple[dict[str, dict[str, list[list[Any]]]], dict[str, list[str]]]:
    """Return the journal's verdicts on sessions, and at which phases filters were asked."""
    wanted = {each.id for each in sessions}
    found: dict[str, dict[str, list[list[Any]]]] = {}
    phases: dict[str, set[str]] = {}
    stories: list[Story] = []
    try:
        journal = Journal(directory, key=key)
        before = ""
        since = sessions[0].time - _MARGIN if sessions else now
        while len(stories) < MAX_STORIES:
            some = journal.search(Search(since=since, limit=_PER_QUERY, before=before))
            stories += some
            if len(some) < _PER_QUERY:
                break
            before = some[-1].id
    except (OSError, TooSlowError) as error:
        raise ConfigError(f"the journal can't be read: {error}") from None
    for story in sorted(stories, key=lambda each: each.time):
        for each in story.verdicts:
            phases.setdefault(each.filter, set()).add(each.phase)
            if story.session in wanted:
                of_filter = found.setdefault(story.session, {}).setdefault(each.filter, [])
                of_filter.append([
                    story.msgid, each.phase, each.argument, each.verb, each.reply, each.reason,
                    each.points, each.flags, each.count,
                ])  # fmt: skip
        if story.session in wanted:
            found.setdefault(story.session, {})
    return found, {name: sorted(of) for name, of in phases.items()}
