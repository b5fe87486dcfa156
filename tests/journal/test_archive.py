"""Files of days: what is found in them, what is purged, and what is done about faults."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from collections import namedtuple
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.errors import user_name
from smtpd_filters.journal import stories
from smtpd_filters.journal.archive import PAUSE, Archive, files
from smtpd_filters.journal.day import NewerError, check_version
from smtpd_filters.journal.privacy import Privacy
from smtpd_filters.journal.query import Journal, TooSlowError
from smtpd_filters.journal.records import Search
from smtpd_filters.journal.rollups import MAX_FILTERS, Sums, reason_of

from .made import DAY, NOON, REFUSED, refused, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[..., Archive]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, notes: list[str]) -> Iterator[Make]:
    made = []

    def archive(**more: object) -> Archive:
        limits = {"days": 30, "size": 1 << 30, "floor": 0, "subjects": False} | more
        privacy = limits.pop("privacy", None) or Privacy("plain")
        made.append(Archive(str(tmp_path), privacy, note=notes.append, **limits))  # type: ignore[arg-type]
        return made[-1]

    yield archive
    for each in made:
        each.close()


def rewritten(phase: str, flags: str = "") -> list[Any]:
    """Return the row of an address that a filter has replaced."""
    new = "alice.new@example.net" if phase == "rcpt-to" else "other@example.net"
    texts = ["", new, "ally@example.net"]
    return ["rewrite", phase, "rewrite", 3, 10, 1, 0, *texts, 0, flags, ""]


def names(path: Path) -> list[str]:
    return [os.path.basename(file) for _, _, file in files(str(path))]  # noqa: PTH119


def test_everything_finds_its_story(make: Make, tmp_path: Path) -> None:
    archive = make()
    other: dict[str, Any] = {
        "f": "carol@example.com",
        "r": [["dave@example.com", 0]],
        "c": ["[2001:db8::1]:2"],
    }
    assert archive.write([stored(2, h=[], **other), refused(3, i="<x1@mx>", u=["erin", ""])], NOON)
    journal = Journal(str(tmp_path))
    wanted = {
        "alice@example.org": 3, "<Alice@Example.ORG>": 3, "bob@example.net": 3,
        "dave@example.com": 2, "@example.com": 2, "lice@ex": 3, "192.0.2.1": 3,
        "192.0.2.0/24": 3, "2001:db8::/32": 2, "mx.example.org": 3, "erin": 3, "x1@mx": 3,
        f"{3:016x}": 3, f"{3:08x}": 3,
    }  # fmt: skip
    for text, number in wanted.items():
        found = journal.search(Search(text=text))
        assert [int(each.session, 16) for each in found] == [number], text
    assert journal.search(Search(text="nobody@example.org")) == []
    assert journal.search(Search(text="%")) == []
    # A whole address is not looked for as a part of a longer one.
    assert journal.search(Search(text="lice@example.org")) == []
    archive.write([stored(9, f="bob@example.net")], NOON)
    found = journal.search(Search(text="bob@example.net"))
    assert [int(each.session, 16) for each in found] == [9, 3]
    assert journal.unread == {}


def test_both_addresses_find_a_story_with_a_rewritten_one(make: Make, tmp_path: Path) -> None:
    rows = [rewritten("rcpt-to"), rewritten("mail-from"), rewritten("mail-from", flags="d")]
    make().write([stored(1, rows[:2]), stored(2, rows[2:])], NOON)
    journal = Journal(str(tmp_path))
    for text in ("ally@example.net", "Alice.New@example.net", "alice.new@", "other@example.net"):
        found = journal.search(Search(text=text))
        assert [int(each.session, 16) for each in found] == [1], text
    # Only the client's senders are ranked.
    [ranked] = journal.rankings("senders", NOON, NOON)
    assert ranked.word == "alice@example.org"


def test_conditions_of_a_search(make: Make, tmp_path: Path) -> None:
    archive = make()
    archive.write([stored(1), refused(2), refused(3, f="")], NOON)
    archive.write([stored(4)], NOON + DAY)
    journal = Journal(str(tmp_path))

    def numbers(**conditions: object) -> list[int]:
        found = journal.search(Search(**conditions))  # type: ignore[arg-type]
        return [int(each.session, 16) for each in found]

    assert numbers() == [4, 3, 2, 1]
    assert numbers(outcomes=frozenset({"refused"})) == [3, 2]
    assert numbers(filter="dnsbl") == [3, 2]
    assert numbers(filter="fcrdns") == []
    assert numbers(filter="fcrdns", verb="proceed", limit=2) == [4, 3]
    newest = journal.search(Search(limit=2))
    assert numbers(before=newest[-1].id) == [2, 1]
    assert numbers(before=journal.search(Search(limit=1))[0].id) == [3, 2, 1]


def test_what_is_new(make: Make, tmp_path: Path) -> None:
    archive = make()
    archive.write([stored(1)], NOON)
    journal = Journal(str(tmp_path))
    marks = journal.marks()

    def new(limit: int = 100) -> list[int]:
        return [int(each.session, 16) for each in journal.new(marks, limit)]

    assert new() == []
    archive.write([stored(2), stored(3), stored(4)], NOON)
    assert [new(2), new(2), new(2)] == [[2, 3], [4], []]
    archive.write([stored(5)], NOON + DAY)
    archive.write([stored(6)], NOON + DAY)
    assert new() == [5, 6]
    # The clock was a year ahead, and is right again.
    archive.write([stored(7)], NOON + 365 * DAY)
    assert new() == [7]
    archive.write([stored(8)], NOON + DAY)
    assert (new(), new()) == ([8], [])
    # A file that nobody has changed for a while is not opened.
    long_ago = (NOON - DAY, NOON - DAY)
    for path in tmp_path.iterdir():
        os.utime(path, long_ago)
    assert new() == []
    assert all(mark.stamp for mark in marks.values())
    # A damaged file was replaced.
    archive.close()
    [_, day, *_] = sorted(tmp_path.glob("*.sqlite"))
    day.rename(f"{day}.damaged-20261201T120000")
    archive = make()
    archive.write([stored(9)], NOON + DAY)
    assert new() == [9]
    (tmp_path / "2026-11-30.sqlite").unlink()
    assert new() == []
    assert str(tmp_path / "2026-11-30.sqlite") not in marks


def test_a_removed_file_is_replaced_by_one_with_its_inode(make: Make, tmp_path: Path) -> None:
    archive = make()
    archive.write([stored(number) for number in range(5)], NOON)
    journal = Journal(str(tmp_path))
    marks = journal.marks()
    path = tmp_path / "2026-11-30.sqlite"
    path.unlink()
    archive.write([stored(6), stored(7)], NOON)
    # As file systems that give numbers again do.
    marks = {name: mark._replace(inode=path.stat().st_ino) for name, mark in marks.items()}
    assert [int(each.session, 16) for each in journal.new(marks)] == [6, 7]
    assert journal.new(marks) == []


def test_a_file_that_is_purged_during_a_query_is_not_missed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make()
    for day in range(3):
        archive.write([stored(day)], NOON + day * DAY)
    first = tmp_path / "2026-11-30.sqlite"

    def files_and_purge(directory: str) -> list[tuple[str, int, str]]:
        found = files(directory)
        first.unlink(missing_ok=True)
        return found

    monkeypatch.setattr("smtpd_filters.journal.query.files", files_and_purge)
    journal = Journal(str(tmp_path))
    assert len(journal.search(Search())) == 2
    assert journal.unread == {}
    monkeypatch.setattr("smtpd_filters.journal.query.files", files)
    first.symlink_to("none")
    journal.search(Search())
    assert journal.unread == {str(first): "No such file or directory"}


def test_a_clock_far_ahead_deletes_nothing(make: Make, tmp_path: Path) -> None:
    passed = [1000.0]
    archive = make(days=30, clock=lambda: passed[0])
    archive.write([stored(1)], NOON)
    archive.write([stored(2)], NOON + DAY)
    aside = tmp_path / "2026-11-30.sqlite.damaged-20261130T120000"
    aside.touch()
    ahead = NOON + 365 * DAY
    archive.write([stored(3)], ahead)
    assert aside.exists()
    archive.write([stored(4)], ahead + DAY / 2)
    archive.write([stored(5)], ahead + 365 * DAY)
    archive.write([stored(6)], NOON + 2 * DAY)
    days = ["2026-11-30.sqlite", "2026-12-01.sqlite", "2026-12-02.sqlite", "2027-11-30.sqlite"]
    assert [each for each in names(tmp_path) if each in days] == days
    # The clock was right: the server was off for a year.
    later = NOON + 900 * DAY
    archive.write([stored(7)], later)
    archive.purge(later)
    assert days[0] in names(tmp_path)
    passed[0] += DAY
    archive.purge(later + DAY)
    assert not set(days[:3]) & set(names(tmp_path))
    assert not aside.exists()


def test_a_clock_that_is_some_days_ahead_deletes_nothing(make: Make, tmp_path: Path) -> None:
    passed = [1000.0]
    archive = make(days=3, clock=lambda: passed[0])
    for _ in range(3):
        archive.write([stored(1)], NOON - 1000 + passed[0])
        passed[0] += DAY
    before = names(tmp_path)
    archive.write([stored(2)], NOON + 5 * DAY)
    archive.write([stored(3)], NOON + 3 * DAY)
    assert set(before) <= set(names(tmp_path))
    # The clock was right: the machine was suspended.
    archive.write([stored(4)], NOON + 7 * DAY)
    passed[0] += DAY
    archive.write([stored(5)], NOON + 8 * DAY)
    assert not set(before) & set(names(tmp_path))


def test_files_of_days_to_come_are_noted_once(make: Make, tmp_path: Path, notes: list[str]) -> None:
    archive = make()
    archive.write([stored(1)], NOON + 365 * DAY)
    archive.write([stored(2)], NOON)
    archive.purge(NOON)
    path = tmp_path / "2027-11-30.sqlite"
    [note] = notes
    assert note.startswith(f"{path}: its date is in the future; if the clock was wrong")
    path.unlink()
    archive.purge(NOON)
    archive.write([stored(3)], NOON + 365 * DAY)
    archive.write([stored(4)], NOON)
    assert notes == [note, note]


def test_a_clock_that_is_ahead_at_the_start_deletes_nothing(make: Make, tmp_path: Path) -> None:
    archive = make(days=30, clock=lambda: 1000.0)
    for day in range(30):
        archive.write([stored(day)], NOON + day * DAY)
    archive.close()
    before = names(tmp_path)
    passed = [5.0]
    archive = make(days=30, clock=lambda: passed[0])
    ahead = NOON + 50 * DAY  # the newest file is 21 days old
    archive.write([stored(1)], ahead)
    archive.write([stored(2)], ahead + DAY / 2)
    assert set(before) <= set(names(tmp_path))
    # The clock was right: there was no mail, or the server was off.
    passed[0] += DAY
    archive.write([stored(3)], ahead + DAY)
    kept = [each for each in before if each in names(tmp_path)]
    assert kept == before[21:]
    # A further jump is doubted as well.
    archive.write([stored(4)], ahead + 365 * DAY)
    assert set(kept) <= set(names(tmp_path))
    passed[0] += DAY
    archive.write([stored(5)], ahead + 366 * DAY)
    assert not set(kept) & set(names(tmp_path))


def test_a_clock_that_begins_in_1970_and_is_far_ahead_later_deletes_nothing(
    make: Make, tmp_path: Path
) -> None:
    archive = make(days=30)
    archive.write([stored(1)], 100.0)
    archive.write([stored(2)], NOON)
    archive.write([stored(3)], NOON + 365 * DAY)
    assert "2026-11-30.sqlite" in names(tmp_path)


@pytest.mark.parametrize("years", [71, 7900])
def test_stories_of_any_year_are_found(make: Make, tmp_path: Path, years: int) -> None:
    now = NOON + years * 365.25 * DAY
    story = stored(1, t=int(now * 1000))
    make().write([story], now)
    journal = Journal(str(tmp_path))
    for wanted in (Search(), Search(since=now - 60, until=now + 60)):
        assert [found.time for found in journal.search(wanted)] == [now]
    assert journal.rankings("senders", now - 3600, now + 3600)


def test_stories_of_a_file_that_cannot_be_read_are_not_new(make: Make, tmp_path: Path) -> None:
    archive = make()
    archive.write([stored(1)], NOON)
    archive.close()
    path = tmp_path / "2026-11-30.sqlite"
    content = path.read_bytes()
    path.write_bytes(b"x" * 4096)
    journal = Journal(str(tmp_path))
    marks = journal.marks()
    path.write_bytes(content)
    assert journal.new(marks) == []


def test_a_story_says_who_decided(make: Make, tmp_path: Path) -> None:
    make().write([refused(7)], NOON)
    journal = Journal(str(tmp_path))
    [found] = journal.search(Search())
    assert journal.story(found.id) == found
    assert (found.outcome, found.decided_by) == ("refused", "dnsbl")
    assert found.reply == "550 5.7.1 Listed"
    assert journal.story("2026-11-30-999") is None
    assert journal.story("../../etc/passwd") is None


def test_parts_that_came_late_are_joined(make: Make, tmp_path: Path) -> None:
    archive = make()
    archive.write([stored(1)], NOON)
    archive.write([stored(1, [REFUSED], e="")], NOON + 5)
    journal = Journal(str(tmp_path))
    whole = [journal.story(found.id) for found in journal.search(Search())]
    filters = [{each.filter for each in found.verdicts} for found in whole if found is not None]
    assert filters == [{"fcrdns", "dnsbl"}] * 2


def test_the_overview_counts_what_was_written(make: Make, tmp_path: Path) -> None:
    archive, sums = make(), Sums()
    for hour in range(5):
        stories = [stored(1), refused(2), refused(3)]
        archive.write(stories, NOON + 3600 * hour, sums)
    archive.write([refused(4)], NOON + 2 * DAY, sums)
    found = Journal(str(tmp_path)).overview(NOON, NOON + 3 * DAY, steps=3)
    assert found.outcomes["accepted"] == 5
    assert found.outcomes["refused"] == 11
    assert [sum(counts.values()) for _, counts in found.steps] == [15, 0, 1, 0]
    assert [counts for _, counts in found.verdict_steps] == [{"reject": 10}, {}, {"reject": 1}, {}]
    verdicts = {(each.filter, each.verb): each for each in found.verdicts}
    assert verdicts["dnsbl", "reject"].count == 11
    assert verdicts["dnsbl", "reject"].seconds == pytest.approx(11 * 0.0015)
    assert sum(verdicts["dnsbl", "reject"].buckets) == 11
    assert verdicts["fcrdns", "proceed"].count == 16
    assert found.reasons == (("dnsbl", "refused", "listed in zen.example", 11),)
    assert sum(sums.outcomes.values()) == 16
    part = Journal(str(tmp_path)).overview(NOON + 3600, NOON + 7199, steps=3)
    assert sum(part.outcomes.values()) == 3


def test_rankings(make: Make, tmp_path: Path) -> None:
    archive = make()
    archive.write([stored(1), refused(2), stored(3, f="carol@example.com")], NOON)
    archive.write([refused(4)], NOON + DAY)
    first, second = Journal(str(tmp_path)).rankings("senders", NOON, NOON + 2 * DAY)
    assert (first.word, first.count) == ("alice@example.org", 3)
    assert first.outcomes == {"accepted": 1, "refused": 2}
    assert first.days == {"2026-11-30": 2, "2026-12-01": 1}
    assert (second.word, second.count) == ("carol@example.com", 1)
    [only] = Journal(str(tmp_path)).rankings("senders", NOON + DAY - 3600, NOON + DAY)
    assert only.days == {"2026-12-01": 1}
    [*_, only] = Journal(str(tmp_path)).rankings("senders", NOON - DAY, NOON)
    assert only.days == {"2026-11-30": 1}


@pytest.mark.parametrize("mode", ["shortened", "hashed"])
def test_addresses_that_are_not_stored_plain(mode: str, make: Make, tmp_path: Path) -> None:
    row = [*REFUSED]
    row[7] = "alice@example.org from 192.0.2.1 or 2001:db8::7 is listed"
    row[8] = "550 5.7.1 <alice@example.org> is listed"
    answers = ["550 5.7.1 <alice@example.org> is listed"]
    facts = {"u": ["alice@example.org", ""], "i": "<alice@example.org>", "j": "Hello Alice"}
    story = refused(1, a=answers, **facts)
    story["w"] += [[*row, "", 0, "", ""], rewritten("rcpt-to")]
    story["w"][-1][8] = '"new alice"@example.net'
    make(privacy=Privacy(mode, b"key")).write([story], NOON)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (b"alice@", b"192.0.2.1", b"2001:db8::7", b"Alice", b"new alice"):
        assert secret not in content
    journal = Journal(str(tmp_path), key=b"key")
    mail = "Alice@example.org", "bob@example.net", "ally@example.net", '"new alice"@example.net'
    for text in (*mail, "192.0.2.1", "mx.example.org"):
        assert len(journal.search(Search(text=text))) == 1, text
    if mode == "hashed":
        assert Journal(str(tmp_path), key=b"other").search(Search(text="bob@example.net")) == []


def test_subjects_only_on_request(make: Make, tmp_path: Path) -> None:
    make().write([stored(1, j="Secret")], NOON)
    make(subjects=True).write([stored(2, j="Public")], NOON)
    found = Journal(str(tmp_path)).search(Search())
    assert [each.subject for each in found] == ["Public", ""]


def test_old_days_are_deleted(make: Make, tmp_path: Path) -> None:
    passed = [1000.0]
    archive = make(days=2, clock=lambda: passed[0])
    for day in range(5):
        archive.write([stored(day)], NOON + day * DAY)
        passed[0] += DAY
    assert names(tmp_path) == ["2026-12-02.sqlite", "2026-12-03.sqlite", "2026-12-04.sqlite"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("2026-11")]


def test_the_oldest_of_too_many_bytes_are_deleted(make: Make, tmp_path: Path) -> None:
    size = 2 << 20
    archive = make(size=size)
    for number in range(1500):
        archive.write([refused(number * 10 + each) for each in range(10)], NOON + number)
    found = names(tmp_path)
    assert len(found) > 3
    assert "2026-11-30.sqlite" not in found
    archive.purge(NOON + 1500)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert total <= size + (6 << 20)
    journal = Journal(str(tmp_path))
    [newest] = journal.search(Search(limit=1))
    assert int(newest.session, 16) == 14999


def test_the_size_includes_the_log_of_a_file_that_is_written_to(make: Make, tmp_path: Path) -> None:
    make().write([stored(each) for each in range(100)], NOON)
    path = tmp_path / "2026-11-30.sqlite"
    log = tmp_path / f"{path.name}-wal"
    assert log.stat().st_size > 0
    size = path.stat().st_size + log.stat().st_size
    assert Journal(str(tmp_path)).extent() == ("2026-11-30", "2026-11-30", size)


def test_the_file_that_is_written_to_is_never_deleted(make: Make, tmp_path: Path) -> None:
    archive = make(size=1000)  # less than any file has
    for number in range(3):
        assert archive.write([stored(number)], NOON + number)
        archive.purge(NOON + number)
    assert len(names(tmp_path)) == 1
    [found] = Journal(str(tmp_path)).search(Search())
    assert int(found.session, 16) == 2


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_set_aside(
    content: bytes, make: Make, tmp_path: Path, notes: list[str]
) -> None:
    (tmp_path / "2026-11-30.sqlite").write_bytes(content)
    archive = make()
    archive.open(NOON)
    assert archive.write([stored(1)], NOON)
    [aside] = tmp_path.glob("2026-11-30.sqlite.damaged-*")
    assert aside.read_bytes() == content
    assert len(Journal(str(tmp_path)).search(Search())) == 1
    [note] = notes
    assert "is damaged" in note


@pytest.mark.parametrize("what", ["word", "seen", "outcomes", "verdicts", "reasons", "meta"])
@pytest.mark.parametrize("running", [True, False])
def test_a_file_without_a_table_is_set_aside(
    what: str, make: Make, tmp_path: Path, notes: list[str], *, running: bool
) -> None:
    """As by an operator's hand, or a repair that left one out: nothing would be written all day."""
    archive = make()
    archive.open(NOON)
    assert archive.write([stored(1)], NOON)
    if not running:
        archive.close()
    path = tmp_path / "2026-11-30.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"DROP TABLE {what}")
    if running:
        archive.write([stored(2)], NOON + 1)
        archive.close()
    archive.open(NOON + PAUSE + 1)
    assert archive.write([stored(3)], NOON + PAUSE + 1)
    [note] = [each for each in notes if "damaged" in each]
    assert f"is damaged (without {what}" in note
    assert len(list(tmp_path.glob("2026-11-30.sqlite.damaged-*"))) == 1
    [found] = Journal(str(tmp_path)).search(Search())
    assert int(found.session, 16) == 3


def test_a_file_without_its_index_of_words_is_set_aside(
    make: Make, tmp_path: Path, notes: list[str]
) -> None:
    make().write([stored(1)], NOON)
    with closing(sqlite3.connect(tmp_path / "2026-11-30.sqlite")) as connection, connection:
        connection.execute("DROP INDEX word_text")
    assert make().write([stored(2)], NOON)
    assert "is damaged (without word_text): renamed to" in notes[0]


@pytest.mark.parametrize("what", ["story", "word", "outcomes", "ranks"])
def test_a_file_without_a_table_is_named_by_the_queries_that_need_it(
    what: str, make: Make, tmp_path: Path
) -> None:
    archive = make()
    archive.write([stored(1)], NOON)
    archive.close()
    path = tmp_path / "2026-11-30.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"DROP TABLE {what}")
    journal = Journal(str(tmp_path))
    match what:
        case "story":
            assert journal.search(Search()) == []
        case "word":
            assert journal.search(Search(text="alice@example.org")) == []
        case "outcomes":
            assert journal.overview(NOON - DAY, NOON).verdicts == ()
        case _:
            assert journal.rankings("senders", NOON - DAY, NOON) == []
    assert journal.unread == {str(path): f"no such table: {what}"}
    make(size=1).purge(NOON)
    assert files(str(tmp_path)) == []


def test_damage_while_it_runs_costs_stories_only(
    make: Make, tmp_path: Path, notes: list[str]
) -> None:
    archive = make()
    archive.write([refused(number) for number in range(500)], NOON)
    archive.close()
    path = tmp_path / "2026-11-30.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    written = [archive.write([stored(at)], NOON + at) for at in range(3)]
    assert written[-1]
    assert sum("is damaged" in note for note in notes) == 1


def test_damage_on_a_disk_that_has_become_read_only(
    make: Make, tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    archive = make()
    archive.write([stored(1)], NOON)

    class Damaged:
        path = str(tmp_path / "2026-11-30.sqlite")

        def size(self) -> int:
            return 0

        def write(self, *_: object) -> None:
            error = sqlite3.DatabaseError("disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

        def close(self, *, finished: bool = False) -> None:
            assert not finished

    archive._close()
    archive._day = Damaged()  # type: ignore[assignment]
    monkeypatch.setattr("os.rename", fail)
    assert not archive.write([stored(2)], NOON)
    assert archive.unwritten == 1
    [note] = notes
    assert note.endswith(
        "2026-11-30.sqlite is damaged (disk image is malformed), and can't be renamed: Read-only "
        "file system; mail is not affected"
    )


def test_damaged_files_are_deleted_in_the_end(make: Make, tmp_path: Path) -> None:
    for name in (
        "2026-10-01.sqlite.damaged-20261001T000000",
        "2026-11-01.2.sqlite.damaged-20261101T000000",
        "2026-11-01.2.sqlite.damaged-20261101T000000-wal",
    ):
        (tmp_path / name).write_bytes(b"x" * 1000)
    make(days=40).purge(NOON)
    assert [path.name[:10] for path in tmp_path.glob("*damaged*")] == ["2026-11-01"] * 2
    make(days=40, size=1500).purge(NOON)
    assert not list(tmp_path.glob("*damaged*"))


def test_a_clock_that_was_set_back_stops_nothing(make: Make, tmp_path: Path) -> None:
    archive = make()
    path = tmp_path / "2027-11-30.sqlite"
    path.mkdir()
    assert not archive.write([stored(1)], NOON + 365 * DAY)
    assert archive.write([stored(2)], NOON)


QUERIES: list[Callable[[Journal], object]] = [
    lambda journal: journal.search(Search(filter="none")),
    lambda journal: journal.search(Search(text="@none.example")),
    lambda journal: journal.new({}),
    lambda journal: journal.marks(),
    lambda journal: journal.overview(NOON - 3 * DAY, NOON),
    lambda journal: journal.rankings("senders", NOON - 3 * DAY, NOON),
    lambda journal: journal.totals(),
]


@pytest.mark.parametrize("query", QUERIES)
def test_the_deadline_is_that_of_all_files(
    query: Callable[[Journal], object],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = make()
    for day in range(-2, 1):
        assert archive.write([stored(1)], NOON + day * DAY)
    archive.close()
    opened: list[float] = []

    def at() -> float:
        return len(opened) * 15.0  # each file takes so many seconds

    connected = Journal._connected

    def connect(journal: Journal, path: str) -> sqlite3.Connection | None:
        opened.append(0.0)
        return connected(journal, path)

    monkeypatch.setattr("smtpd_filters.journal.query.monotonic", at)
    monkeypatch.setattr(Journal, "_connected", connect)
    with pytest.raises(TooSlowError, match="no result within 20 s"):
        query(Journal(str(tmp_path)))
    assert len(opened) == 2


def test_the_filters_of_a_day_are_limited(make: Make, tmp_path: Path) -> None:
    archive = make()
    for batch in range(3):
        stories = []
        for number in range(MAX_FILTERS - 50):
            row = [f"f{batch}-{number}", "connect", "reject", 1, 1, 1, 0, "no"]
            stories.append(stored(number, [row], e="rollback"))
        assert archive.write(stories, NOON)
        if batch == 1:
            archive.close()  # a new process
            archive = make()
    found = Journal(str(tmp_path)).overview(NOON - DAY, NOON)
    assert len({each.filter for each in found.verdicts}) == MAX_FILTERS + 1
    assert len({name for name, *_ in found.reasons}) == MAX_FILTERS + 1


def test_a_newer_file_is_refused(make: Make, tmp_path: Path) -> None:
    make().write([stored(1)], NOON)
    with sqlite3.connect(tmp_path / "2026-11-30.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(NewerError, match="written by a newer release"):
        make().open(NOON)
    with pytest.raises(NewerError, match="written by a newer release"):
        make().open(NOON + DAY)
    journal = Journal(str(tmp_path))
    assert journal.search(Search()) == []
    [why] = journal.unread.values()
    assert why.startswith("written by a newer release (schema ")


def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().write([stored(1)], NOON)
    os.mkfifo(tmp_path / "2026-11-29.sqlite")  # to open it would wait
    (tmp_path / "2026-11-28.sqlite").symlink_to("nowhere")
    journal = Journal(str(tmp_path))
    assert len(journal.search(Search())) == 1
    assert {Path(path).name: why for path, why in journal.unread.items()} == {
        "2026-11-29.sqlite": "not a regular file",
        "2026-11-28.sqlite": "No such file or directory",
    }
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    assert journal.search(Search()) == []
    why = journal.unread[str(tmp_path / "2026-11-30.sqlite")]
    assert why == f"Permission denied for user {user_name()}"


def test_an_earlier_file_that_cannot_be_opened_stops_nothing(make: Make, tmp_path: Path) -> None:
    (tmp_path / "2026-11-29.sqlite").symlink_to("none")
    archive = make()
    archive.open(NOON)
    assert archive.write([stored(1)], NOON)


def test_a_file_that_is_created_while_it_is_examined(make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "2026-11-30.sqlite")
    with closing(sqlite3.connect(path)) as connection:

        class Late:
            def execute(self, text: str) -> SimpleNamespace:
                row = connection.execute(text).fetchone()
                make().open(NOON)
                return SimpleNamespace(fetchone=lambda: row)

        assert check_version(Late(), path) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_that_is_begun_or_finished_meanwhile(
    number: int, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without write permission beside it, it can't be opened for a moment."""
    if number:
        make().write([stored(1)], NOON)
    else:
        (tmp_path / "2026-11-30.sqlite").touch()
    faults = [sqlite3.OperationalError("unable to open database file")]
    connect = sqlite3.connect

    def connect_later(*args: Any, **more: Any) -> sqlite3.Connection:
        if faults:
            raise faults.pop()
        made: sqlite3.Connection = connect(*args, **more)
        return made

    monkeypatch.setattr("sqlite3.connect", connect_later)
    journal = Journal(str(tmp_path))
    assert len(journal.search(Search())) == number
    assert (journal.unread, faults) == ({}, [])


def test_a_file_without_the_version_of_its_schema_is_set_aside(
    make: Make, tmp_path: Path, notes: list[str]
) -> None:
    path = tmp_path / "2026-11-30.sqlite"
    archive = make()
    archive.write([stored(1)], NOON)
    archive.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 0")
    journal = Journal(str(tmp_path))
    assert journal.search(Search()) == []
    assert journal.unread == {str(path): "the version of its schema is missing"}
    assert archive.write([stored(2)], NOON)
    assert "is damaged (the version of its schema is missing): renamed to" in notes[0]
    assert len(journal.search(Search())) == 1


@pytest.mark.parametrize(
    ("end", "reason"),
    [("", "not a regular file"), ("-journal", "its -journal file is not a regular file")],
)
def test_a_fifo_in_place_of_todays_file_is_refused(
    make: Make, tmp_path: Path, notes: list[str], end: str, reason: str
) -> None:
    archive = make()
    archive.write([stored(1)], NOON)
    today = tmp_path / "2026-12-01.sqlite"
    fifo = today.with_name(f"{today.name}{end}")
    today.touch()
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)  # to open it would wait
    with pytest.raises(OSError, match=reason) as raised:
        make().open(NOON + DAY)
    assert raised.value.filename == str(today)
    assert not archive.write([stored(2)], NOON + DAY)
    assert notes == [f"{today}: not written: {reason}; mail is not affected"]
    fifo.unlink()
    assert archive.write([stored(3)], NOON + DAY + PAUSE)


def test_what_cannot_be_deleted_does_not_keep_the_rest(
    make: Make, tmp_path: Path, notes: list[str]
) -> None:
    (tmp_path / "2026-01-01.sqlite").mkdir()
    loop = tmp_path / "2026-01-02.sqlite"
    loop.symlink_to(loop)
    make().write([stored(1)], NOON)
    make().write([stored(2)], NOON + DAY)
    make(days=1).purge(NOON + 2 * DAY)
    assert names(tmp_path) == ["2026-01-01.sqlite", "2026-12-01.sqlite"]
    assert notes[-1].startswith(f"{tmp_path}/2026-01-01.sqlite: not deleted: ")


def test_nothing_is_written_below_the_floor(
    make: Make, tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = namedtuple("found", "f_bavail f_frsize")  # noqa: PYI024  # in place of a result
    free = [10]
    monkeypatch.setattr(os, "statvfs", lambda _: found(free[0], 1 << 20))
    archive = make(floor=5 << 20)
    assert archive.write([stored(1)], NOON)
    free[0] = 4
    assert not archive.write([stored(2)], NOON + 10)
    assert not archive.write([stored(3)], NOON + 20)
    free[0] = 10
    assert archive.write([stored(4)], NOON + 30)
    assert archive.unwritten == 2
    assert [int(each.session, 16) for each in Journal(str(tmp_path)).search(Search())] == [4, 1]
    assert len(notes) == 2
    assert "less than 5 MiB are free" in notes[0]
    assert notes[1] == "writing again; 2 stories were lost"


def test_a_quota_is_named(make: Make, tmp_path: Path, notes: list[str]) -> None:
    archive = make()
    archive.write([stored(1)], NOON)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # SQLite has the same error for a quota.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        assert not archive.write([stored(2)], NOON + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    reason = "cannot be written (disk quota, limit of file sizes, faulty disk)"
    assert notes == [f"{tmp_path}: not written: {reason}; mail is not affected"]


def test_a_disk_that_is_full_costs_stories_only(
    make: Make, tmp_path: Path, notes: list[str]
) -> None:
    archive = make()
    archive.write([stored(1)], NOON)
    assert archive._day is not None
    # SQLite has the same error for a file that must not grow.
    archive._day._connection.execute("PRAGMA max_page_count = 1").fetchone()
    assert not archive.write([refused(number) for number in range(2, 500)], NOON + 1)
    assert not archive.write([stored(500)], NOON + 2)
    assert archive.write([stored(501)], NOON + 2 * PAUSE)
    assert [int(each.session, 16) for each in Journal(str(tmp_path)).search(Search())] == [501, 1]
    assert notes == [
        f"{tmp_path}: not written: database or disk is full; mail is not affected",
        "writing again; 499 stories were lost",
    ]


def test_a_directory_that_goes_away_comes_back(
    make: Make, tmp_path: Path, notes: list[str]
) -> None:
    archive = make()
    archive.write([stored(1)], NOON)
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    assert not archive.write([stored(2)], NOON + 10)
    assert not archive.write([stored(3)], NOON + 11)
    moved.rename(tmp_path)
    assert archive.write([stored(4)], NOON + 10 + 2 * PAUSE)
    assert [int(each.session, 16) for each in Journal(str(tmp_path)).search(Search())] == [4, 1]
    assert len(notes) == 2


def test_files_of_others_are_left_alone(make: Make, tmp_path: Path) -> None:
    for name in ("2020-13-99.sqlite", "notes.txt", "2020-01-01.sqlite.damaged-1", "key"):
        (tmp_path / name).write_text("x")
    archive = make(days=1)
    archive.write([stored(1)], NOON)
    archive.purge(NOON + DAY)
    assert len(list(tmp_path.iterdir())) >= 5
    assert names(tmp_path) == ["2026-11-30.sqlite"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("dsl-1-2-3-4.pool.isp.example", "dsl-*-*-*-*.pool.isp.example"),
        ("http://localhost:11333 connection refused", "http://localhost:* connection refused"),
        ("[2001:db8::1] and 192.0.2.7.", "[*] and *."),
        ("550 5.7.1 user anna@example.org, 17 times", "550 5.7.1 user *, * times"),
        ("a.b: c", "a.b: c"),
    ],
)
def test_reasons_are_counted_without_numbers_and_addresses(said: str, reason: str) -> None:
    deciding: list[Any] = [0, 0, 0, 0, 0, 1, 0, said, ""]
    assert reason_of({}, stories.REFUSED, deciding) == reason
