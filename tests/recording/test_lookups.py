"""Look-ups in recordings: written by the process that asks, and read by a resolver."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.filters.fcrdns import Fcrdns
from smtpd_filters.filters.trace import Trace
from smtpd_filters.lookups.dns.recorded import NOT_RECORDED, RecordedResolver
from smtpd_filters.lookups.dns.records import decode, encode
from smtpd_filters.lookups.outcome import INVALID, MX, Found, NotFound, Unavailable
from smtpd_filters.recording import Recording, writer
from smtpd_filters.recording.format import LOOKUP, REMARK
from smtpd_filters.runtime.log import FilterLog, Log
from smtpd_filters.testing import Conversation
from smtpd_filters.testing.dns import DNSServer, host, merge

if TYPE_CHECKING:
    from pathlib import Path

CLIENT, NAME = "192.0.2.7", "mail.good.example"
OUTCOMES = [
    ("A", Found(("192.0.2.1", "192.0.2.2"), 0.0)),
    ("A", Found(("192.0.2.1",), 0.0, "the answer was too large")),
    ("MX", Found((MX(10, "mx.example"), MX(0, ".")), 0.0)),
    ("TXT", Found((b"v=spf1 -all", b"\xff\x00|\n"), 0.0)),
    ("PTR", NotFound("nxdomain")),
    ("AAAA", Unavailable("timed out")),
]


def recorded(folder: Path) -> list[list[Any]]:
    """Return the look-ups of all recordings."""
    return [
        json.loads(line.removeprefix(LOOKUP))
        for path in sorted(folder.glob("*.session"))
        for direction, line in Recording.read(path).entries
        if direction == REMARK and line.startswith(LOOKUP)
    ]


def connect(folder: Path, server: DNSServer, clients: int = 1, **options: Any) -> None:
    """Have clients judged by a chain that records."""
    filters = [
        Trace(Trace.Options(detail="none", record=str(folder), **options)),
        Fcrdns(Fcrdns.Options(verify=True)),
    ]
    address = server.address, server.port
    with Conversation(filters, nameserver=address) as conversation:
        for _ in range(clients):
            conversation.connect(rdns=NAME, fcrdns="fail", address=CLIENT)


def test_each_recorder_of_a_process_has_the_look_ups(tmp_path: Path) -> None:
    class Other(Trace):
        name = "other"

    folders = [tmp_path / "first", tmp_path / "second"]
    filters = []
    for folder, kind in zip(folders, (Trace, Other), strict=True):
        folder.mkdir()
        filters.append(kind(kind.Options(detail="none", record=str(folder))))
    with DNSServer(host(NAME, CLIENT)) as server:
        address = server.address, server.port
        fcrdns = Fcrdns(Fcrdns.Options(verify=True))
        with Conversation([*filters, fcrdns], nameserver=address) as conversation:
            conversation.connect(rdns=NAME, fcrdns="fail", address=CLIENT)
    first, second = map(recorded, folders)
    assert first == second != []


@pytest.mark.parametrize(("rdtype", "outcome"), OUTCOMES)
def test_outcomes_are_read_as_they_were(rdtype: str, outcome: Any) -> None:
    record = json.loads(json.dumps(encode(outcome, rdtype)))
    found = decode(record, rdtype)
    assert found == outcome


@pytest.mark.parametrize(
    "record",
    [{}, {"f": []}, {"f": [3]}, {"f": None}, {"f": [["x", "y"]]}, {"f": [["10", 3, 4]]}],
)
@pytest.mark.parametrize("rdtype", ["A", "MX"])
def test_invalid_records_are_refused(rdtype: str, record: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode(record, rdtype)


def test_a_chain_records_what_its_filters_look_up(tmp_path: Path) -> None:
    zone = merge(host(NAME, CLIENT))
    with DNSServer(zone) as server:
        connect(tmp_path, server, clients=3)
    # Cached answers are not written again.
    found = {(rdtype, name): record for rdtype, name, record in recorded(tmp_path)}
    assert len(found) == len(recorded(tmp_path))
    assert found["PTR", "7.2.0.192.in-addr.arpa"] == {"f": [NAME]}
    assert found["A", NAME] == {"f": [CLIENT]}


def test_each_file_has_its_look_ups(tmp_path: Path) -> None:
    with DNSServer(merge(host(NAME, CLIENT))) as server:
        connect(tmp_path, server, clients=30, max_size=1 << 10)
        assert len(server.queries) <= 2  # once, and for A and AAAA
    files = len(list(tmp_path.glob("*.session")))
    assert files > 1
    asked = [name for rdtype, name, _ in recorded(tmp_path) if rdtype == "PTR"]
    assert len(asked) >= files - 1


def test_pseudonyms_have_no_look_ups(tmp_path: Path) -> None:
    with DNSServer(merge(host(NAME, CLIENT))) as server:
        connect(tmp_path, server, anonymise=True)
    assert recorded(tmp_path) == []
    assert all(CLIENT.encode() not in path.read_bytes() for path in tmp_path.glob("*.session"))


def test_a_recorded_resolver_sends_nothing() -> None:
    missing: list[str] = []
    with DNSServer({}) as server:
        resolver = RecordedResolver(
            {"A good.example": Found(("192.0.2.1",), 0.0), "A bad.example": NotFound("nxdomain")},
            missing.append,
        )

        async def ask() -> None:
            assert await resolver.query("Good.example.", "A") == Found(("192.0.2.1",), 0.0)
            assert await resolver.query("not a name", "A") == NotFound(INVALID)
            assert await resolver.query("good.example", "MX") == Unavailable(NOT_RECORDED)
            found = await resolver.query_all([("bad.example", "A"), ("x.example", "A")])
            assert found == [NotFound("nxdomain"), Unavailable(NOT_RECORDED)]
            assert await resolver.ptr("192.0.2.1") == Unavailable(NOT_RECORDED)
            resolver.start("y.example", "A")
            await resolver.aclose()

        asyncio.run(ask())
        assert resolver.missing(["bad.example"], "A")
        assert not resolver.missing(["bad.example", "good.example"], "A")
        assert server.queries == []
    assert missing == [
        "MX good.example", "A x.example", "PTR 1.2.0.192.in-addr.arpa", "A y.example",
    ]  # fmt: skip


def test_a_failure_to_record_costs_nothing(tmp_path: Path) -> None:
    lines: list[str] = []

    class Log:
        def limited(self, kind: str, event: str, **values: str) -> None:
            lines.append(f"{kind} {event} {values}")

    def encode_badly(_outcome: object, _rdtype: str) -> object:
        raise RuntimeError("no")

    log: Any = Log()
    recorder = writer.Recorder(str(tmp_path), log, encode=encode_badly)
    recorder.received(b"config|ready\n")
    recorder.sent(b"register|ready\n")
    recorder.received(b"report|0.7|1.0|smtp-in|link-connect|1|x|fail|192.0.2.7:1|192.0.2.1:25\n")
    recorder.looked_up("a.example", "A", NotFound("nxdomain"))
    recorder.close()
    assert len(lines) == 1
    assert recorded(tmp_path) == []


def test_another_ttl_is_no_change(tmp_path: Path) -> None:
    recorder = writer.Recorder(str(tmp_path), FilterLog(Log(), "trace"), encode=encode)
    recorder.received(b"config|ready\n")
    recorder.sent(b"register|ready\n")
    recorder.received(b"report|0.7|1.0|smtp-in|link-connect|1|x|fail|192.0.2.7:1|192.0.2.1:25\n")
    for address, ttl in (("192.0.2.1", 300.0), ("192.0.2.1", 217.0), ("192.0.2.2", 300.0)):
        recorder.looked_up("a.example", "A", Found((address,), ttl))
    recorder.close()
    assert [record for _, _, record in recorded(tmp_path)] == [
        {"f": ["192.0.2.1"]},
        {"f": ["192.0.2.2"]},
    ]


def test_large_outcomes_are_not_kept(tmp_path: Path) -> None:
    recorder = writer.Recorder(str(tmp_path), FilterLog(Log(), "trace"), encode=encode)
    recorder.received(b"config|ready\n")
    recorder.sent(b"register|ready\n")
    recorder.received(b"report|0.7|1.0|smtp-in|link-connect|1|x|fail|192.0.2.7:1|192.0.2.1:25\n")
    for _ in range(2):
        for number in range(5):
            recorder.looked_up(f"a{number}.example", "TXT", Found((b"x" * 40_000,), 0.0))
    [file] = recorder._open
    assert len(file.lookups) == 5
    assert sum(sys.getsizeof(each) for each in file.lookups.values()) < 1000
    recorder.close()
    assert len(recorded(tmp_path)) == 5


def test_look_ups_before_the_first_session_are_in_its_file(tmp_path: Path) -> None:
    recorder = writer.Recorder(str(tmp_path), FilterLog(Log(), "trace"), encode=encode)
    recorder.received(b"config|ready\n")
    for number in range(writer.MAX_EARLY + 5):
        recorder.looked_up(f"a{number}.example", "A", NotFound("nxdomain"))
    recorder.sent(b"register|ready\n")
    recorder.received(b"report|0.7|1.0|smtp-in|link-connect|1|x|fail|192.0.2.7:1|192.0.2.1:25\n")
    recorder.looked_up("a0.example", "A", NotFound("nxdomain"))
    recorder.close()
    found = recorded(tmp_path)
    assert len(found) == writer.MAX_EARLY
    assert found[0] == ["A", "a0.example", {"n": "nxdomain"}]
