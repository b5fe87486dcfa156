"""Trials of other settings on recorded sessions: what differs, and what can't be tried."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.cli import main, player
from smtpd_filters.cli.chain_file import ChainFile
from smtpd_filters.cli.trial import changes, past, program
from smtpd_filters.errors import ConfigError
from smtpd_filters.recording.format import LOOKUP, REMARK, encode_entry
from smtpd_filters.settings import ENDPOINT, TEXT
from tests.journal.made import stored

from .trials import COMMAND, NEIGHBOURS, Tried, looked_up, made, shifted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from smtpd_filters.recording.replay import Replay, Step

GOOD, DYNAMIC, NAMELESS, MOBILE = (
    "7d0b140bfebd5960", "7d0b140ec510e76a", "7d0b1411c3fcb82b", "7d0b141d804fcd1a",
)  # fmt: skip
DNSBL = """\
junk-at = 2
reject-at = 9
[filter.dyndns]
score = 1
[filter.dnsbl]
client = ["zen.example"]
untested = ["zen.example"]
score = 8
"""
CLIENTS = (
    "10.100.51.198", "77.113.0.203", "66.100.51.198", "20.100.51.198", "25.2.0.192",
    "42.113.0.203",
)  # fmt: skip
LISTED = "200.113.0.203.zen.example"


def by_session(result: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the outcomes of the messages that differ, as it is and with the change."""
    return {
        row["session"]: (row["old"]["outcome"], row["new"]["outcome"])
        for row in result["rows"]
        if row["differs"]
    }


def story(session: str, *rows: list[Any]) -> dict[str, Any]:
    now = time.time()
    return stored(1, list(rows), s=session, k="session", m="", t=int((now - 3600) * 1000))


# -- what differs ----------------------------------------------------------------------------


def test_a_threshold_is_tried_on_the_last_day(tmp_path: Path) -> None:
    found = made(tmp_path).result("chain.in", junk_at="3", reject_at="")
    assert by_session(found) == {DYNAMIC: ("refused", "junk"), MOBILE: ("refused", "junk")}
    assert (found["sessions"], found["messages"], found["differ"]) == (7, 7, 2)
    assert (found["unsure"], found["left_out"], found["missing"]) == (0, 0, [])
    assert found["change"] == "[chain.in]\njunk-at = 3\n# without reject-at"
    [row] = [row for row in found["rows"] if row["session"] == DYNAMIC]
    assert (row["client"], row["sender"]) == ("203.0.113.77", "me@isp.example")
    assert row["recipients"] == ["alice@example.org"]
    assert row["old"]["reply"] == "554 5.7.1 Refused as probable spam"
    assert abs(row["time"] - time.time() + 3600) < 60


def test_a_setting_of_a_filter_is_tried(tmp_path: Path) -> None:
    tried = made(tmp_path, '[filter.dyndns]\naction = "reject"\n')
    found = tried.result("filter.dyndns", action="reject", dry_run="true")
    assert by_session(found) == {
        DYNAMIC: ("refused", "accepted"),
        MOBILE: ("refused", "accepted"),
    }
    assert found["change"] == "[filter.dyndns]\ndry-run = true"
    found = tried.result("filter.dyndns", reply="550 5.7.1 Use your provider's server")
    assert {row["new"]["reply"] for row in found["rows"]} == {
        "550 5.7.1 Use your provider's server"
    }


def test_the_message_that_was_asked_about_is_first_though_nothing_differs(tmp_path: Path) -> None:
    found = made(tmp_path).result("chain.in", session=GOOD, reject_at="2.5")
    assert found["differ"] == 0
    [row] = found["rows"]
    assert row["this"]
    assert row["session"] == GOOD
    assert row["old"]["outcome"] == row["new"]["outcome"] == "accepted"


def test_only_the_last_day_is_replayed(tmp_path: Path) -> None:
    tried = made(tmp_path)
    shifted(NEIGHBOURS, tried.recordings / "a.session", before=90_000)
    assert tried.result("chain.in", junk_at="3")["sessions"] == 0


def test_a_recording_that_is_being_written_is_read_so_far(tmp_path: Path) -> None:
    tried = made(tmp_path)
    path = tried.recordings / "a.session"
    path.write_bytes(path.read_bytes() + b"< report|0.6|17")
    assert tried.result("chain.in", junk_at="3", reject_at="")["differ"] == 2


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[", b"[" * 50_000, b"3", b"{}", b"[]", b"[1, 2, 3]", b'["A", "x", null]', b"\xff",
        b'["A", "x", {"f": [1]}]', b'["MX", "x", {"f": [[1]]}]', b'["A", ["x"], {"f": "x"}]',
        b'["TXT", "x", {"f": [null]}]', '["TXT", "x", {"f": ["\u20ac"]}]'.encode(),
    ],
)  # fmt: skip
def test_damaged_look_ups_are_left_out(tmp_path: Path, text: bytes) -> None:
    tried = made(tmp_path)
    path = tried.recordings / "a.session"
    path.write_bytes(path.read_bytes() + encode_entry(REMARK, LOOKUP + text))
    found = past.read(str(tried.recordings), str(tried.journal), b"", time.time())
    assert found.lookups == {}
    assert len(found.sessions) == 7


def test_a_damaged_recording_is_left_out(tmp_path: Path) -> None:
    tried = made(tmp_path)
    (tried.recordings / "b.session").write_bytes(b"no recording\n")
    found = tried.result("chain.in", junk_at="3", reject_at="")
    assert (found["sessions"], found["differ"], found["left_out"]) == (7, 2, 1)


def test_a_recording_that_is_deleted_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = made(tmp_path)
    gone = tried.recordings / "b.session"
    gone.write_bytes(b"")
    scandir = os.scandir

    def deletes(path: str) -> AbstractContextManager[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            found = list(entries)
        gone.unlink()
        return nullcontext(found)

    monkeypatch.setattr(os, "scandir", deletes)
    found = past.read(str(tried.recordings), str(tried.journal), b"", time.time())
    assert (len(found.sessions), found.left_out) == (7, 0)


def test_a_recording_that_is_replaced_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = made(tmp_path)
    replaced = tried.recordings / "b.session"
    replaced.write_bytes(b"")
    lstat = os.lstat

    def replaces(path: str) -> os.stat_result:
        found = lstat(path)
        if path == str(replaced):
            replaced.unlink()
            os.mkfifo(replaced)  # to open it would wait
        return found

    monkeypatch.setattr(os, "lstat", replaces)
    found = past.read(str(tried.recordings), str(tried.journal), b"", time.time())
    assert (len(found.sessions), found.left_out) == (7, 1)


def test_pseudonyms_are_refused(tmp_path: Path) -> None:
    tried = made(tmp_path)
    path = tried.recordings / "a.session"
    path.write_bytes(b"# names: pseudonyms\n" + path.read_bytes())
    assert "pseudonyms" in tried.error("chain.in", junk_at="3")


# -- what filters asked others ---------------------------------------------------------------


def test_verdicts_of_the_journal_stand_in_for_what_can_not_be_asked(tmp_path: Path) -> None:
    listed = ["dnsbl", "connect", "points", 3, 1500, 1, 0, "listed", "", "", 8000, "", "score"]
    stories = [
        story(NAMELESS, listed),
        story(GOOD, ["dnsbl", "connect", "proceed", 3, 9]),
    ]
    tried = made(tmp_path, DNSBL, ("dyndns", "dnsbl"), stories)
    found = tried.result("chain.in", reject_at="8")
    assert by_session(found) == {NAMELESS: ("junk", "refused")}
    # The others' verdicts are in no story.
    assert found["unsure"] == 5
    assert ["the journal has nothing of this session", 5] in found["missing"]


def test_what_a_filter_was_never_asked_is_not_certain(tmp_path: Path) -> None:
    stories = [
        story(GOOD, ["dnsbl", "connect", "proceed", 3, 9]),
        # The list was not asked about this client.
        story(DYNAMIC, ["dyndns", "connect", "reject", 3, 9]),
    ]
    tried = made(tmp_path, DNSBL, ("dyndns", "dnsbl"), stories)
    found = tried.result("chain.in", session=DYNAMIC, reject_at="8")
    [row] = found["rows"]
    assert row["missing"] == ["dnsbl at connect"]


def test_recorded_look_ups_answer_filters(tmp_path: Path) -> None:
    tried = made(tmp_path, DNSBL, ("dyndns", "dnsbl"))
    outcomes: dict[str, Any] = {f"A {each}.zen.example": {"n": "nxdomain"} for each in CLIENTS[:-1]}
    outcomes |= {f"A {LISTED}": {"f": ["127.0.0.2"]}, f"TXT {LISTED}": {"f": ["spam"]}}
    looked_up(tried.recordings / "a.session", outcomes)
    found = tried.result("chain.in", reject_at="8")
    assert by_session(found) == {NAMELESS: ("junk", "refused")}
    # The look-ups of one client are not recorded.
    assert [what for what, _ in found["missing"]] == ["A 42.113.0.203.zen.example"]
    assert found["unsure"] == 1
    found = tried.result("filter.dnsbl", score="9")
    assert by_session(found) == {NAMELESS: ("junk", "refused")}


def test_a_list_counts_if_its_test_entries_are_recorded_too(tmp_path: Path) -> None:
    rules = DNSBL.replace('untested = ["zen.example"]\n', "")
    tried = made(tmp_path, rules, ("dyndns", "dnsbl"))
    path = tried.recordings / "a.session"
    looked_up(path, {f"A {LISTED}": {"f": ["127.0.0.2"]}, f"TXT {LISTED}": {"f": ["spam"]}})
    found = tried.result("chain.in", session=NAMELESS, reject_at="8")
    [row] = [row for row in found["rows"] if row["this"]]
    assert "A 2.0.0.127.zen.example" in row["missing"]
    looked_up(
        path,
        {
            "A 2.0.0.127.zen.example": {"f": ["127.0.0.2"]},
            "A 1.0.0.127.zen.example": {"n": "nxdomain"},
            # IPv4-mapped: ::FFFF:7F00:1 and ::FFFF:7F00:2.
            **{
                f"A {last}.0.0.0.0.0.f.7.f.f.f.f.{'0.' * 20}zen.example": {"n": "nxdomain"}
                for last in (1, 2)
            },
            **{
                f"TXT {last}.0.0.0.0.0.f.7.f.f.f.f.{'0.' * 20}zen.example": {"n": "nxdomain"}
                for last in (1, 2)
            },
        },
    )
    found = tried.result("chain.in", reject_at="8")
    assert by_session(found) == {NAMELESS: ("junk", "refused")}
    assert {what for what, _ in found["missing"]} == {f"A {each}.zen.example" for each in CLIENTS}


def test_the_filter_that_is_changed_is_asked_without_look_ups_too(tmp_path: Path) -> None:
    found = made(tmp_path, DNSBL, ("dyndns", "dnsbl")).result("filter.dnsbl", score="9")
    assert found["unsure"] == 7
    assert "A 10.100.51.198.zen.example" in [what for what, _ in found["missing"]]


@pytest.mark.parametrize("default", [False, True])
def test_a_filter_with_a_memory_is_not_asked(*, default: bool, tmp_path: Path) -> None:
    store = tmp_path / "greylist.sqlite"
    rules = "[filter.greylist]\n" + ("" if default else f'store = "sqlite:{store}"\n')
    stories = [
        story(GOOD, ["greylist", "rcpt-to", "proceed", 3, 9]),
        story(
            NAMELESS,
            ["greylist", "rcpt-to", "reject", 3, 9, 1, 0, "new", "451 4.7.1 Later",
             "alice@example.org"],
        ),
    ]  # fmt: skip
    tried = made(tmp_path, rules, ("dyndns", "greylist"), stories)
    found = tried.result("filter.greylist", dry_run="true")
    assert by_session(found) == {NAMELESS: ("deferred", "accepted")}
    assert not store.exists()
    described = {each["name"]: each for each in tried.ask(do="describe")["result"]["sections"]}
    assert [field["key"] for field in described["greylist"]["fields"]] == ["dry-run"]
    assert "memory" in described["greylist"]["stands_in"]


# -- attacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "key", "text"),
    [
        ("filter.dyndns", "extra-patterns", "file:/etc/shadow"),
        ("filter.dyndns", "exempt", "file:/etc/shadow"),
        ("filter.dyndns", "use", "/srv/evil.py:Evil"),
        ("filter.dyndns", "journal", "/srv/socket"),
        ("filter.dyndns", "sandbox", "off"),
        ("filter.dnsbl", "client", "evil.example"),
        ("filter.dnsbl", "nameserver", "192.0.2.1"),
        ("filter.dnsbl", "key", "x"),
        ("chain.in", "filters", "trace"),
        ("chain.in", "sandbox", "off"),
        ("chain.in", "bypass-clients", "file:/etc/passwd"),
        ("chain.in", "journal", "/srv/socket"),
        ("filter.trace", "record", "/srv"),
        ("filter.policy", "server", "unix:/run/x"),
        ("filter.", "", ""),
        ("chain.other", "junk-at", "3"),
        ("filter.in", "junk-at", "3"),
        ("process.in", "junk-at", "3"),
        ("filter.dyndns", "--score", "3"),
        ("filter.dyndns", "score\n[filter.x]", "3"),
    ],
)
def test_nothing_else_can_be_set(tmp_path: Path, table: str, key: str, text: str) -> None:
    tried = made(tmp_path, DNSBL, ("dyndns", "dnsbl"))
    kind, _, section = table.partition(".")
    file = ChainFile.read(str(tried.chain))
    with pytest.raises(ConfigError, match=r"no table|can be tried"):
        changes.changed(file, "in", kind, section, {key: text})


@pytest.mark.parametrize(
    "text",
    [
        "9" * 201, "9" * 200, "1e400", "-1", "nan", "inf", "1_0", " 3", "3\n", "3 # x", "\u0663",
        '3"', "true", "{ reject = 5 }", "0x10", "junk=1,junk=2,reject", "\u202e3", "\ud800",
    ],
)  # fmt: skip
def test_values_are_checked_by_their_declaration(tmp_path: Path, text: str) -> None:
    file = ChainFile.read(str(made(tmp_path).chain))
    with pytest.raises(ConfigError, match=r"^reject-at: "):
        changes.changed(file, "in", "chain", "in", {"reject-at": text})


def test_a_chain_that_could_not_start_is_told(tmp_path: Path) -> None:
    assert "cannot be reached" in made(tmp_path).error("chain.in", reject_at="1000")


def test_a_form_without_a_change_is_refused(tmp_path: Path) -> None:
    tried = made(tmp_path)
    assert tried.error("chain.in") == "nothing is changed"
    described = tried.ask(do="describe")["result"]["sections"][0]
    texts = {each["key"].replace("-", "_"): each["value"] for each in described["fields"]}
    assert tried.error("chain.in", **texts) == "nothing is changed"


def test_every_setting_that_can_be_tried_is_inward() -> None:
    from smtpd_filters.cli.listing import discover
    from smtpd_filters.sandbox import Needs

    options = [each for cls in discover()[0] for each in cls.Options.options.values()]
    inward = [each for each in options if each.kind.inward]
    assert len(inward) > 50
    for option in inward:
        assert option.kind.metavar not in {"TABLE", "PATH"}, option.key
        assert option.kind not in (TEXT, ENDPOINT)
        assert not option.secret
        if option.default is not None:
            needs = Needs()
            before = {name: getattr(needs, name) for name in Needs.__slots__}
            option.kind.declare(option.default, needs)
            assert before == {name: getattr(needs, name) for name in Needs.__slots__}


EVIL = """\
import os, socket
from smtpd_filters import PROCEED, Decision, Filter, Reject, Session

class Evil(Filter):
    \"\"\"Try everything.\"\"\"

    name = "evil"

    def setup(self):
        self._try()

    def connect(self, session: Session) -> Decision:
        return Reject("550 " + " ".join(self._try()))

    def _try(self):
        found = []
        for attempt in (
            lambda: open({path!r}, "w"),
            lambda: os.fork(),
            lambda: os.execv("/bin/true", ["true"]),
            lambda: socket.create_connection(("127.0.0.1", {port})),
            lambda: socket.socket(socket.AF_UNIX),
            lambda: open({secret!r}),
            lambda: os.kill(os.getppid(), 9),
        ):
            try:
                attempt()
                found.append("done")
            except OSError:
                found.append("refused")
        return found
"""


def test_filters_are_in_a_sandbox_before_they_are_set_up(tmp_path: Path) -> None:
    from socket import create_server

    (tmp_path / "secret").write_text("x")
    with create_server(("127.0.0.1", 0)) as server:
        code = EVIL.format(
            path=str(tmp_path / "written"),
            secret=str(tmp_path / "secret"),
            port=server.getsockname()[1],
        )
        (tmp_path / "evil.py").write_text(code)
        rules = f'[filter.evil]\nuse = "{tmp_path}/evil.py:Evil"\n'
        found = made(tmp_path, rules, ("evil",)).result("filter.evil", dry_run="true")
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert {row["old"]["reply"] for row in found["rows"]} == {"550 " + " ".join(["refused"] * 7)}
    assert not (tmp_path / "written").exists()


def test_a_filter_that_takes_all_memory_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(
        EVIL.partition("    def setup")[0].replace("Evil", "Greedy").replace("evil", "greedy")
        + "    def connect(self, session: Session) -> Decision:\n"
        + "        self.kept = bytearray(4 << 30)\n        return PROCEED\n"
    )
    rules = f'[filter.greedy]\nuse = "{tmp_path}/greedy.py:Greedy"\n'
    found = made(tmp_path, rules, ("greedy",)).result("filter.greedy", on_error="tempfail")
    assert {row["new"]["outcome"] for row in found["rows"]} == {"deferred"}


class Started(player.Process):
    """A filter that may take its time to start, but not to answer."""

    def _exchange(self, replay: Replay, data: bytes, step: Step | None) -> None:
        self._timeout = 0.5 if step else 60.0
        super()._exchange(replay, data, step)


def test_a_filter_that_never_answers_ends_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "Process", Started)
    (tmp_path / "silent.py").write_text(
        EVIL.partition("    def setup")[0].replace("Evil", "Silent").replace("evil", "silent")
        + "    def connect(self, session: Session) -> Decision:\n"
        + "        while True: pass\n"
    )
    rules = f'[filter.silent]\nuse = "{tmp_path}/silent.py:Silent"\n'
    tried = made(tmp_path, rules, ("silent",))
    file = ChainFile.read(str(tried.chain))
    request = {**tried.request, "kind": "filter", "section": "silent", "session": ""}
    request["values"] = {"dry-run": "true"}  # type: ignore[assignment]  # as JSON
    trial = program.Trial(file, "in", request)
    with pytest.raises(ConfigError, match=r"no answer for 0\.5 s at connect"):
        trial.result()


def test_limits_of_the_past(tmp_path: Path) -> None:
    tried = made(tmp_path)
    place = str(tried.recordings), str(tried.journal)
    found = past.read(*place, b"", time.time(), most=3)
    assert [each.id for each in found.sessions][-1] == MOBILE
    assert (len(found.sessions), found.left_out) == (3, 4)
    found = past.read(*place, b"", time.time(), most=3, room=1000)
    assert (len(found.sessions), found.left_out) == (0, 1)


def test_links_and_other_files_are_not_read(tmp_path: Path) -> None:
    tried = made(tmp_path)
    (tried.recordings / "b.session").symlink_to("/etc/passwd")
    (tried.recordings / "passwd").write_text("x")
    assert tried.result("chain.in", junk_at="1")["sessions"] == 7


def test_the_time_is_limited(tmp_path: Path) -> None:
    tried = made(tmp_path)
    file = ChainFile.read(str(tried.chain))
    request: dict[str, Any] = {**tried.request, "kind": "chain", "section": "in", "session": ""}
    request["values"] = {"junk-at": "3"}
    found = program.Trial(file, "in", request, budget=0.0).result()
    assert (found["sessions"], found["left_out"]) == (0, 7)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"do": "try"}', b"\xff", b"[" * 60_000])
def test_an_invalid_request_is_an_error(data: bytes) -> None:
    done = subprocess.run(COMMAND, input=data, capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
    assert "error" in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--recordings", "{0}/recordings"], "--recordings requires --try"),
        (["--try-chain", "in"], "--try-chain requires --try"),
        (["--try", "{0}/chain.toml"], "--try requires --recordings"),
        (["--try", "{0}/chain.toml", "--recordings", "{0}/none"], "missing, or not readable"),
        (["--passwords", "{0}/none"], "--passwords: {0}/none: No such file"),
        (["--try", "{0}/none", "--recordings", "{0}/recordings"], "--try: {0}/none: No such file"),
        (
            ["--try", "{0}/chain.toml", "--try-chain", "x", "--recordings", "{0}/recordings"],
            "--try: {0}/chain.toml: no [chain.x]",
        ),
    ],
)
def test_wrong_flags_end_the_page(
    tmp_path: Path, flags: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["web", *(each.format(tmp_path) for each in flags)])
    assert ended.value.code == 2
    assert text.format(tmp_path) in capsys.readouterr().err


# -- the file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (3.0, "3"),
        (2.5, "2.5"),
        ("2h", '"2h"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ({"junk": 1.0, "reject": 2.5}, "{ junk = 1, reject = 2.5 }"),
        (7, "7"),
    ],
)
def test_values_are_written_as_in_the_file(value: object, text: str) -> None:
    import tomllib

    assert changes.toml(value) == text
    assert tomllib.loads(f"x = {text}")["x"] == value


def test_the_lines_can_be_pasted(tmp_path: Path) -> None:
    tried = made(tmp_path, "[filter.dyndns]\n")
    change = tried.result("filter.dyndns", reply='550 5.7.1 "No"', on_error="tempfail")["change"]
    tried.chain.write_text(f'[chain.in]\nfilters = ["dyndns"]\n{change}\n')
    [declared] = ChainFile.read(str(tried.chain)).declared("in")
    assert declared.policy.on_error == "tempfail"
    assert vars(declared.own)["reply"] == '550 5.7.1 "No"'


def test_nothing_is_written(tmp_path: Path) -> None:
    tried: Tried = made(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    tried.result("chain.in", junk_at="1")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
