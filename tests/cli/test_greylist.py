"""`smtpd-filters greylist`, beside a filter that uses the same file."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.cli import main
from smtpd_filters.cli.greylist import dumps
from smtpd_filters.cli.store_search import find_options, find_store
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.filters.greylist.records import Record, of_json
from smtpd_filters.testing import Conversation
from tests.effort import part

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_796_064_300.0
TERMS = dumps.Terms(
    now=NOW, delay=300, window=7200, lifetime=864_000, known_after=5, prefixes=(24, 64)
)


class Tool:
    """The tool and the filter on one file."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.store = ("--store", f"sqlite:{path}", "--store-timeout", "60")
        self.run_filter()

    def __call__(self, *words: str, status: int = 0) -> str:
        self._capsys.readouterr()
        assert main(["greylist", *words, *self.store]) == status
        return self._capsys.readouterr().out

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self(*words, "--json", status=status))

    def fails(self, *words: str) -> str:
        with pytest.raises(SystemExit) as raised:
            main(["greylist", *words, *self.store])
        assert raised.value.code == 2
        return self._capsys.readouterr().err

    def run_filter(self, *attempts: tuple[str, str, str]) -> list[str]:
        """Give attempts of address, sender and recipient to the filter; return the replies."""
        flags = ("--key", "network", "--delay", "1h", "--window", "1d")
        with Conversation(Greylist, *self.store, *flags) as smtpd:
            replies = []
            for address, sender, recipient in attempts:
                client = smtpd.connect(address=address)
                client.ehlo("mail.example.com")
                client.mail_from(sender)
                replies.append(client.rcpt_to(recipient).reply)
            return replies


@pytest.fixture
def tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tool:
    return Tool(tmp_path / "greylist.sqlite", capsys)


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**each, "age": 0, "left": 0} for each in records]


ONE = ("192.0.2.7", "Anna@example.org", "you@example.net")
TWO = ("2001:db8::7", "list-5@example.org", "you@example.net")


def test_what_the_filter_remembers_is_shown(tool: Tool) -> None:
    assert all(reply.startswith("451 4.7.1") for reply in tool.run_filter(ONE, TWO))
    first, second = tool("list").splitlines()
    assert first.startswith(
        "192.0.2.0/24 <anna@example.org> <you@example.net> waiting from 192.0.2.7, "
    )
    assert second.startswith("2001:db8::/64 <list-#@example.org> <you@example.net> waiting")
    assert " ago, expires in 23h" in first
    for line in (tool("list", "192.0.2.200"), tool("show", "192.0.2.0/24")):
        assert line.partition(",")[0] == first.partition(",")[0]
    [shown] = tool.json("list", "192.0.2.7")
    assert shown == {
        "client": "192.0.2.0/24",
        "sender": "anna@example.org",
        "recipient": "you@example.net",
        "state": "waiting",
        "address": "192.0.2.7",
        "age": shown["age"],
        "left": shown["left"],
    }
    both = tool.json("show", *ONE), tool.json("show", "192.0.2.7")
    assert without_times(both[0]) == without_times(both[1])
    assert tool.json("show", "192.0.2.7", "", "you@example.net", status=1) == []
    assert tool("show", "198.51.100.1", status=1) == "198.51.100.0/24: not known\n"
    assert tool("list", "198.51.100.1", "example.net", status=1) == (
        "198.51.100.0/24: not known\nexample.net: not known\n"
    )
    assert tool.json("list", "198.51.100.1", status=1) == []
    assert tool.json("stats") == {
        "triplets_waiting": 2,
        "triplets_passed": 0,
        "clients_with_triplets": 2,
        "clients_counted": 0,
        "clients_known": 0,
        "clients_allowed": 0,
    }
    assert "triplets waiting               2\n" in tool("stats")


def test_the_clients_and_times_are_those_of_the_configured_filter(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "smtpd.conf"
    flags = f"--store {tool.store[1]} --ipv4-prefix 32 --lifetime 3d --known-after 2"
    conf.write_text(f'filter g proc-exec "filter-greylist {flags}"\n')
    for search in (find_options, find_store):
        monkeypatch.setattr(
            f"smtpd_filters.cli.stores.{search.__name__}",
            lambda *words, search=search: search(*words, [str(conf)], []),
        )
    assert main(["greylist", "allow", "192.0.2.7"]) == 0
    assert main(["greylist", "allow", "192.0.2.7", "--ipv4-prefix", "28"]) == 0
    dump = tmp_path / "dump"
    dump.write_bytes(
        f"VERSION=3\nformat=print\ntype=btree\nHEADER=END\n 198.51.100.7\n 2,{time.time():.0f}\n"
        "DATA=END\n".encode()
    )
    assert main(["greylist", "import", str(dump)]) == 0
    assert capsys.readouterr().out == (
        "allowed: 192.0.2.7/32\nallowed: 192.0.2.0/28\n"
        "1 imported, 0 skipped: expired, or without a meaning here\n"
    )
    [known] = tool.json("show", "198.51.100.7/32")
    assert known["state"] == "known"
    assert known["left"] <= 3 * 86400


def test_who_is_allowed_passes_until_forgotten(tool: Tool) -> None:
    assert tool("allow", "192.0.2.7", "Example.ORG.", "--duration", "2d") == (
        "allowed: 192.0.2.0/24, example.org\n"
    )
    assert tool.run_filter(ONE) == [""]
    assert "192.0.2.0/24 allowed, " in tool("list")
    assert tool.json("show", "example.org")[0]["state"] == "allowed"
    assert tool("forget", "192.0.2.0/24") == "forgotten: 2 entries of 192.0.2.0/24\n"
    assert tool.run_filter(ONE)[0].startswith("451 ")
    assert tool.json("allow", "192.0.2.7") == {"allowed": ["192.0.2.0/24"]}
    assert tool.json("forget", "192.0.2.7", "example.org") == {"forgotten": 3}
    assert tool.json("forget", "192.0.2.7", status=1) == {"forgotten": 0}


def test_a_client_that_is_stored_as_a_domain_is_named(tool: Tool, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    entry = {"client": "example.net", "state": "waiting", "left": 99, "address": "198.51.100.66"}
    dump.write_text(json.dumps({**entry, "sender": "a@example.net", "recipient": "b@c.example"}))
    tool("import", str(dump))
    line = "198.51.100.0/24: not known (198.51.100.66 is stored as example.net)\n"
    assert tool("show", "198.51.100.66", status=1) == line
    assert tool("list", "198.51.100.66", status=1) == line


def test_a_triplet_that_is_not_known_is_named(tool: Tool) -> None:
    tool.run_filter(ONE)
    line = "192.0.2.0/24 <> <nobody@example.org>: not known\n"
    assert tool("show", "192.0.2.7", "", "nobody@example.org", status=1) == line


def test_a_triplet_may_be_forgotten_alone(tool: Tool) -> None:
    other = (ONE[0], "", ONE[2])
    tool.run_filter(ONE, ("192.0.2.9", "bert@example.org", "you@example.net"))
    assert tool("forget", *ONE).startswith("forgotten: 1 entry of 192.0.2.7 ")
    assert [each["sender"] for each in tool.json("list")] == ["bert@example.org"]
    assert tool("forget", *other, status=1).startswith("forgotten: 0 entries")


def test_an_export_is_imported_elsewhere(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.run_filter(ONE, TWO, ("192.0.2.7", "x" * 240 + "@example.org", "\udcff@example.net"))
    tool("allow", "example.org")
    exported = tmp_path / "export"
    exported.write_text(tool("export"))
    copy = Tool(tmp_path / "copy.sqlite", capsys)
    assert copy("import", str(exported)) == (
        "4 imported, 0 skipped: expired, or without a meaning here\n"
    )
    assert without_times(copy.json("list")) == without_times(tool.json("list"))
    assert copy.run_filter(ONE)[0].startswith("451 ")  # its wait has begun again


def test_a_fifo_that_nobody_writes_is_not_waited_for(tool: Tool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert tool.json("import", str(tmp_path / "fifo")) == {"imported": 0, "skipped": 0}


def test_many_entries_are_imported_and_forgotten(tool: Tool, tmp_path: Path) -> None:
    you, many = "you@example.net", tmp_path / "many"
    records = [
        Record("192.0.2.0/24", "passed", 9000, sender=f"{name}@example.org", recipient=you).shown
        for name in range(300)
    ]
    many.write_text("".join(f"{json.dumps(each)}\n" for each in records))
    assert tool.json("import", str(many)) == {"imported": 300, "skipped": 0}
    assert len(tool.json("list")) == len(tool("export").splitlines()) == 300
    assert tool.json("forget", "192.0.2.7") == {"forgotten": 300}
    assert tool.json("list") == []
    many.write_text(f"{json.dumps(records[0])}\nnonsense\n")
    assert "many: line 2: neither an export nor" in tool.fails("import", str(many))


POSTGREY = rb"""VERSION=3
format=print
type=btree
db_pagesize=4096
HEADER=END
 192.0.2.0/anna@example.org/you@example.net
 1796000000,1796064200
 198.51.100.0/"a/b\\\\c\fc"@example.org/x/y@example.net
 1796064000,1796064200
 198.51.100.0//you@example.net
 1796064000,1796064000
 2001:db8:0:0:0:0:0:0/list-#@example.org/you@example.net
 1790000000,1790000600
 2fd4e1c67a2d28fced849ee1bb76e7391b93eb12
 1796000000,1796064200
DATA=END
VERSION=3
format=bytevalue
type=btree
db_pagesize=4096
HEADER=END
 3139322e302e322e37
 392c31373936303634323030
 3139322e302e322e38
 322c31373936303634323030
 3139322e302e322e38
 302c31373936303634323030
DATA=END
"""
SPAMDB = b"""WHITE|192.0.2.7|||1796000000|1796001000|1796100000|2|9
GREY|198.51.100.9|mail.example.com|<anna@example.org>|<you@example.net>|1796064000|1796064100|1796070000|1|0
GREY|198.51.100.9|mail.example.com|<>|<you@example.net>|1796064000|1796064100|1796064299|1|0
TRAPPED|203.0.113.9|1796100000
SPAMTRAP|trap@example.net
"""


def read(dump: bytes) -> list[Record | None]:
    return list(dumps.read(io.BytesIO(dump), TERMS))


def test_a_dump_of_postgrey_is_read() -> None:
    you = "you@example.net"
    assert read(POSTGREY) == [
        Record("192.0.2.0/24", "passed", 863_900, sender="anna@example.org", recipient=you),
        Record(
            *("198.51.100.0/24", "waiting", 6900),
            sender="a/b\\c\udcfc@example.org",
            recipient="x/y@example.net",
        ),
        Record("198.51.100.0/24", "waiting", 6900, sender="", recipient=you),
        None,
        None,
        Record("192.0.2.0/24", "known", 863_900),
        Record("192.0.2.0/24", "counted", 863_900, count=2),
        None,
    ]


def test_a_list_of_spamd_is_read() -> None:
    grey: Any = {"sender": "anna@example.org", "recipient": "you@example.net"}
    assert read(SPAMDB) == [
        Record("192.0.2.0/24", "known", 35_700),
        Record("198.51.100.0/24", "waiting", 5700, address="198.51.100.9", **grey),
        *(None, None, None),
    ]


def test_what_is_imported_passes(tool: Tool, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    late = b"%d" % (time.time() + 9000)
    dump.write_bytes(SPAMDB.replace(b"1796100000", late).replace(b"|1796070000|", b"|%b|" % late))
    assert tool.json("import", str(dump))["imported"] == 2
    assert tool.run_filter(ONE) == [""]
    assert tool.run_filter(("198.51.100.9", *ONE[1:]))[0].startswith("451 ")


@pytest.mark.parametrize(
    ("dump", "problem"),
    [
        (b"\nhello\n", "line 2: neither an export nor a dump of postgrey or spamd"),
        (b"WHITE|192.0.2.7\n", "line 1: not an entry of spamdb"),
        (b"WHITE|x|||1|2|9999999999|4|5\n", "line 1: not an entry of spamdb"),
        (b"VERSION=3\nHEADER=END\n 31\nDATA=END\n", "line 3: not an entry of db_dump"),
        (b"VERSION=3\nHEADER=END\n zz\n zz\n", "line 3: not an entry of postgrey"),
        (b"VERSION=3\nformat=print\nHEADER=END\n a/b\n c\n", "line 4: not an entry of postgrey"),
        (b"{}\n", "line 1: not a record of an export"),
        (b"{\n", "line 1: "),
        (b'{"a":' + b"[" * 60_000, "line 1: "),  # too deep for Python before 3.14
        (b"\n" + b"x" * 65_537, "line 2: longer than 65536 bytes"),
        (b"VERSION=3\nformat=print\nHEADER=END\n 192.0.2.1\n 7,nan\n", "line 4: not an entry of p"),
        (b"VERSION=3\nformat=print\nHEADER=END\n 192.0.2.1/a@b/c@d\n nan,1\n", "line 4: not an"),
        (b"VERSION=3\nformat=print\nHEADER=END\n 192.0.2.1/a@b/c@d\n 1,inf\n", "line 4: not an"),
        (b"WHITE|192.0.2.7|||1|2|nan|4|5\n", "line 1: not an entry of spamdb"),
        (b"GREY|192.0.2.7|h|a@b|c@d|1|2|inf|4|5\n", "line 1: not an entry of spamdb"),
        (b'{"client": "a.example", "state": "known", "left": -1}', "line 1: not a record"),
        (b'{"client": "a.example", "state": "counted", "left": 1}', "line 1: not a record"),
        (b'{"client": "a.example", "state": "waiting", "left": 1}', "line 1: not a record"),
        (b'{"client": 5, "state": "known", "left": 1}', "line 1: not a record"),
        (
            b'{"client": "a.example", "state": "counted", "left": 1, "count": %s}' % (b"9" * 4200),
            "line 1: not a record",
        ),
        (
            b'{"client": "a", "state": "known", "left": 1, "address": "a\\nb"}',
            "line 1: not a record",
        ),
        (b'{"client": "\\ud800", "state": "known", "left": 1}', "line 1: not a record"),
    ],
)
def test_what_is_no_dump_is_refused(dump: bytes, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(dump)


@given(st.binary(max_size=60), st.sampled_from([b"", b"{", b"WHITE|", b"GREY|", b"VERSION=3\n"]))
@settings(max_examples=part(300))
def test_any_input_is_read_or_refused(data: bytes, start: bytes) -> None:
    try:
        found = read(start + data)
    except ConfigError:
        found = []
    records = [record for record in found if record is not None]
    assert all(record.operation.ttl > 0 for record in records)
    again = [of_json(json.loads(json.dumps(record.shown))) for record in records]
    assert [record.client for record in again] == [record.client for record in records]


def test_what_is_before_an_invalid_line_is_imported(tool: Tool, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    entry = '{"client": "%d.example.org", "state": "known", "left": 9}\n'
    dump.write_text("".join(entry % n for n in range(70)) + "{}\n" + entry % 99)
    assert f"{dump}: line 71: not a record of an export (70 imported before)" in (
        tool.fails("import", str(dump))
    )
    assert tool.json("stats")["clients_known"] == 70


def test_values_that_no_filter_has_written_are_left_out(tool: Tool, tmp_path: Path) -> None:
    tool("allow", "example.org")
    values = ["\N{SUPERSCRIPT TWO}".encode(), b"9" * 5000, b"-1", b"0", b"", None, 5.5]
    with closing(sqlite3.connect(tmp_path / "greylist.sqlite")) as file, file:
        rows = [(b"greylist:{%d.example}" % n, each, 1, 9e12) for n, each in enumerate(values)]
        file.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
    assert [each["client"] for each in tool.json("list")] == ["example.org"]
    assert tool.json("stats")["clients_allowed"] == 1
    assert len(tool("export").splitlines()) == 1


def test_mistakes(tool: Tool, tmp_path: Path) -> None:
    assert "allow requires a CLIENT" in tool.fails("allow")
    for network, prefix in (("192.0.2.0/16", 24), ("192.0.2.7/32", 24), ("2001:db8::/48", 64)):
        error = f'"{network}" is no client of the filter, whose networks are /{prefix}'
        assert error in tool.fails("allow", "192.0.2.0/24", network)
    assert tool.json("stats")["clients_allowed"] == 0
    assert "forget requires a CLIENT" in tool.fails("forget")
    assert "show requires CLIENT, or CLIENT SENDER RECIPIENT" in tool.fails("show", "a", "b")
    assert '"example..org" is neither an address' in tool.fails("allow", "example..org")
    assert '"anna@example.org" is neither an address nor a network or domain' in (
        tool.fails("allow", "anna@example.org")
    )
    assert '"192.0.2.300" is neither an address nor' in tool.fails("allow", "192.0.2.300")
    assert '"192.0.2.0/33" is not a network' in tool.fails("list", "192.0.2.0/33")
    assert 'stats takes no operand: "x"' in tool.fails("stats", "x")
    missing = str(tmp_path / "missing")
    assert f"{missing}: No such file or directory" in tool.fails("import", missing)
