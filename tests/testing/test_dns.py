"""The DNS server of the test kit, queried with dnspython's own client."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from smtpd_filters.testing.dns import DNSServer, host, merge
from smtpd_filters.testing.dns.__main__ import main
from tests.effort import brief

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ZONE = merge(
    host("mail.good.example", "127.0.0.9", "::1"),
    {
        "mail.good.example": {"MX": "10 mx.good.example", "TXT": ["v=spf1 a -all", '"quo" "ted"']},
        "alias.example": {"CNAME": "next.example"},
        "next.example": {"CNAME": "mail.good.example"},
        "nowhere.example": {"CNAME": "missing.example"},
        "loop.example": {"CNAME": "loop2.example"},
        "loop2.example": {"CNAME": "loop.example"},
        "*.wild.example": {"A": "192.0.2.1"},
        "many.example": {"A": [f"192.0.2.{n}" for n in range(60)]},
        "servfail.example": {"servfail": True},
        "refused.example": {"refused": True},
        "half.example": {"A": "192.0.2.2", "AAAA": "2001:db8::2", "drop": ["AAAA"]},
        "slow.example": {"A": "192.0.2.3", "delay": 0.05},
        "late.example": {"A": "192.0.2.3", "delay": 60},
        "cut.example": {"A": "192.0.2.4", "truncate": True},
        "cut-dead.example": {"A": "192.0.2.4", "truncate": True, "no-tcp": True},
        "id.example": {"A": "192.0.2.5", "wrong-id": True},
        "question.example": {"A": "192.0.2.5", "wrong-name": True},
        "owner.example": {"A": "192.0.2.5", "wrong-owner": True},
        "spoof.example": {"A": "192.0.2.6", "spoof": True},
        "bytes.example": {"malformed": True},
        "trailing.example": {"A": "192.0.2.7", "trailing": True},
        "flap.example": {"A": "192.0.2.8", "flap": True},
        "ttl.example": {"A": "192.0.2.9", "ttl": 7},
    },
)


@pytest.fixture(scope="module")
def running() -> Iterator[DNSServer]:
    with DNSServer(ZONE) as server:
        yield server


@pytest.fixture
def server(running: DNSServer) -> DNSServer:
    running.queries.clear()
    return running


def ask(
    server: DNSServer, name: str, rdtype: str, *, how: Any = dns.query.udp, **options: Any
) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, use_edns=0, payload=1232)
    options.setdefault("timeout", 10)
    answer = how(query, server.address, port=server.port, **options)
    assert isinstance(answer, dns.message.Message)
    return answer


def records(message: dns.message.Message) -> list[str]:
    return [
        f"{str(rrset.name).lower().rstrip('.')} {dns.rdatatype.to_text(rrset.rdtype)} {rdata}"
        for rrset in message.answer
        for rdata in rrset
    ]


def test_queries_include_everything_sent(server: DNSServer) -> None:
    query = dns.message.make_query("drop.example", "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for number in range(1, 200):
            client.sendto(query, (server.address, server.port))
            assert server.asked("drop.example", "A") == number


@pytest.mark.parametrize("how", [dns.query.udp, dns.query.tcp])
@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("mail.good.example", "A", ["mail.good.example A 127.0.0.9"]),
        ("MAIL.good.Example.", "AAAA", ["mail.good.example AAAA ::1"]),
        ("mail.good.example", "MX", ["mail.good.example MX 10 mx.good.example."]),
        ("9.0.0.127.in-addr.arpa", "PTR", ["9.0.0.127.in-addr.arpa PTR mail.good.example."]),
        (f"1.{'0.' * 31}ip6.arpa", "PTR", [f"1.{'0.' * 31}ip6.arpa PTR mail.good.example."]),
        (
            "mail.good.example",
            "TXT",
            ['mail.good.example TXT "v=spf1 a -all"', 'mail.good.example TXT "quo" "ted"'],
        ),
        (
            "alias.example",
            "A",
            [
                "alias.example CNAME next.example.",
                "next.example CNAME mail.good.example.",
                "mail.good.example A 127.0.0.9",
            ],
        ),
        ("alias.example", "CNAME", ["alias.example CNAME next.example."]),
        (
            "loop.example",
            "A",
            ["loop.example CNAME loop2.example.", "loop2.example CNAME loop.example."],
        ),
        ("any.thing.wild.example", "A", ["any.thing.wild.example A 192.0.2.1"]),
        ("many.example", "A", [f"many.example A 192.0.2.{n}" for n in range(60)]),
    ],
)
def test_answers(server: DNSServer, how: Any, name: str, rdtype: str, expected: list[str]) -> None:
    answer = ask(server, name, rdtype, how=how)
    assert answer.rcode() == dns.rcode.NOERROR
    got = records(answer)
    assert sorted(got) == sorted(expected)  # dnspython shuffles the records of a set
    assert server.queries == [(name.lower().rstrip("."), rdtype)]


@pytest.mark.parametrize(
    ("name", "rdtype", "rcode"),
    [
        ("missing.example", "A", dns.rcode.NXDOMAIN),
        ("nowhere.example", "A", dns.rcode.NXDOMAIN),
        ("many.example", "AAAA", dns.rcode.NOERROR),
        ("alias.example", "MX", dns.rcode.NOERROR),
        ("servfail.example", "A", dns.rcode.SERVFAIL),
        ("refused.example", "A", dns.rcode.REFUSED),
    ],
)
def test_negative_answers(
    server: DNSServer, name: str, rdtype: str, rcode: dns.rcode.Rcode
) -> None:
    answer = ask(server, name, rdtype)
    assert answer.rcode() == rcode
    if rcode != dns.rcode.SERVFAIL and not answer.answer and rcode != dns.rcode.REFUSED:
        (soa,) = answer.authority
        assert soa.ttl == soa[0].minimum == 60


def test_negative_answer_without_soa() -> None:
    with DNSServer({}, negative_ttl=None) as server:
        assert ask(server, "missing.example", "A").authority == []


def test_ttl(server: DNSServer) -> None:
    assert ask(server, "ttl.example", "A").answer[0].ttl == 7
    assert ask(server, "many.example", "A").answer[0].ttl == 300


def test_drop_applies_to_the_listed_types(server: DNSServer) -> None:
    assert len(records(ask(server, "half.example", "A"))) == 1
    for how in (dns.query.udp, dns.query.tcp):
        with pytest.raises(dns.exception.Timeout):
            ask(server, "half.example", "AAAA", how=how, timeout=brief(0.5))
    assert server.asked("half.example", "AAAA") == 2


def test_delay(server: DNSServer) -> None:
    with pytest.raises(dns.exception.Timeout):
        ask(server, "late.example", "A", timeout=0.01)
    assert len(records(ask(server, "slow.example", "A"))) == 1
    assert len(records(ask(server, "slow.example", "A", how=dns.query.tcp))) == 1


def test_truncate(server: DNSServer) -> None:
    answer = ask(server, "cut.example", "A")
    assert answer.flags & dns.flags.TC
    assert answer.answer == []
    assert records(ask(server, "cut.example", "A", how=dns.query.tcp)) == [
        "cut.example A 192.0.2.4"
    ]
    with pytest.raises((EOFError, ConnectionError)):
        ask(server, "cut-dead.example", "A", how=dns.query.tcp)


def test_an_answer_too_long_for_the_client_is_truncated(server: DNSServer) -> None:
    def query(payload: int | None) -> dns.message.Message:
        asked = dns.message.make_query("many.example", "A")
        if payload is not None:
            asked.use_edns(payload=payload)
        return dns.query.udp(asked, server.address, port=server.port, timeout=10)

    assert query(None).flags & dns.flags.TC
    assert query(512).flags & dns.flags.TC
    assert len(records(query(1232))) == 60


def test_wrong_answers(server: DNSServer) -> None:
    with pytest.raises(dns.query.BadResponse):
        ask(server, "id.example", "A")
    with pytest.raises(dns.query.BadResponse):
        ask(server, "question.example", "A")
    assert records(ask(server, "owner.example", "A")) == ["unasked.invalid A 192.0.2.5"]


def test_spoof_precedes_the_real_answer(server: DNSServer) -> None:
    query = dns.message.make_query("spoof.example", "A")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(10)
        udp.connect((server.address, server.port))
        udp.send(query.to_wire())
        forged, true = (dns.message.from_wire(udp.recv(4096)) for _ in range(2))
    assert not query.is_response(forged)
    assert records(forged) == ["spoof.example A 203.0.113.66"]
    assert query.is_response(true)
    assert records(true) == ["spoof.example A 192.0.2.6"]


def test_malformed_and_trailing(server: DNSServer) -> None:
    with pytest.raises(dns.exception.DNSException):
        ask(server, "bytes.example", "A")
    with pytest.raises(dns.message.TrailingJunk):
        ask(server, "trailing.example", "A")
    assert len(records(ask(server, "trailing.example", "A", ignore_trailing=True))) == 1


def test_flap_answers_every_second_question(server: DNSServer) -> None:
    answered = []
    for timeout in (brief(0.2), 10, brief(0.2), 10):
        try:
            ask(server, "flap.example", "A", timeout=timeout)
        except dns.exception.Timeout:
            answered.append(False)
        else:
            answered.append(True)
    assert answered == [False, True, False, True]


def test_garbage_is_ignored(server: DNSServer) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for wire in (b"", b"\0", b"\xff" * 40, b"\0\1" + b"\0" * 10):
            udp.sendto(wire, (server.address, server.port))
    assert len(records(ask(server, "many.example", "A"))) == 60
    assert server.queries == [("many.example", "A")]


def test_several_questions_in_one_tcp_connection(server: DNSServer) -> None:
    query = dns.message.make_query("ttl.example", "A")
    with socket.create_connection((server.address, server.port), timeout=10) as tcp:
        for _ in range(3):
            dns.query.send_tcp(tcp, query)
            answer, _ = dns.query.receive_tcp(tcp)
            assert query.is_response(answer)


def test_zone_can_be_changed_while_running() -> None:
    with DNSServer({"a.example": {"A": "192.0.2.1"}}) as server:
        server.zone["B.example."] = {"A": "192.0.2.2"}
        assert records(ask(server, "b.example", "A")) == ["b.example A 192.0.2.2"]
        del server.zone["b.example"]
        assert ask(server, "b.example", "A").rcode() == dns.rcode.NXDOMAIN
        server.zone = {"*": {"refused": True}}
        assert ask(server, "a.example", "A").rcode() == dns.rcode.REFUSED
        with pytest.raises(ValueError, match=r"c\.example A: "):
            server.zone["c.example"] = {"A": "not an address"}


@pytest.mark.parametrize(
    ("zone", "culprit"),
    [
        ({"a.example": {"A": "::1"}}, "a.example A: expected A as `192.0.2.1`, not '::1' "),
        (
            {"a.example": {"MX": "mx.example.net"}},
            "a.example MX: expected MX as `10 mx.example.net`, not 'mx.example.net' ",
        ),
        ({"a.example": "192.0.2.1"}, "a.example: expected record types and behaviours, "),
        ({"a.example": {"NONSENSE": "1"}}, "a.example NONSENSE: "),
        ({"a.example": {"dorp": True}}, "a.example dorp: neither a record type nor a behaviour"),
        ({"a.example": {"drop": ["XYZZY"]}}, "a.example drop: "),
        ({"a.example": {"delay": "soon"}}, "a.example delay: "),
        ({"a.example": {"TXT": "x" * 65_300}}, "a.example TXT: more than fits into a response"),
        ({"a.example": {"TXT": ["x" * 200] * 320}}, "a.example TXT: more than fits "),
        ({"a..example": {"A": "192.0.2.1"}}, "'a..example' is not a domain name: "),
    ],
)
def test_an_invalid_zone_is_rejected(zone: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit.replace(".", r"\.")):
        DNSServer(zone)


def test_merge_combines_records() -> None:
    zone = merge(host("a.example", "192.0.2.1"), host("b.example", "192.0.2.1"))
    assert zone["1.2.0.192.in-addr.arpa"] == {"PTR": ["a.example", "b.example"]}


def test_ipv6_and_several_addresses() -> None:
    with DNSServer(ZONE, listen=[("::1", 0), ("127.0.0.1", 0)]) as server:
        assert server.address == "::1"
        for address, port in server.endpoints:
            query = dns.message.make_query("ttl.example", "A")
            assert dns.query.udp(query, address, port=port, timeout=10).answer


def test_a_port_in_use_is_an_error_and_leaves_no_thread(server: DNSServer) -> None:
    other = DNSServer({}, listen=[(server.address, server.port)])
    before = threading.active_count()
    with pytest.raises(OSError, match="in use"), other:
        pass
    assert threading.active_count() == before


def test_pending_answers_leave_no_thread() -> None:
    before = threading.active_count()
    server = DNSServer({"*": {"A": "192.0.2.1", "delay": 60}})
    with server, socket.create_connection((server.address, server.port)) as tcp:
        dns.query.send_tcp(tcp, dns.message.make_query("a.example", "A"))
        with pytest.raises(dns.exception.Timeout):
            ask(server, "b.example", "A", timeout=0.02)
    assert threading.active_count() == before


def program(zone: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "smtpd_filters.testing.dns", "--zone", str(zone), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def zone_file(tmp_path: Path) -> Path:
    path = tmp_path / "zone.json"
    path.write_text(json.dumps(ZONE))
    return path


@pytest.mark.parametrize("end", ["eof", "sigterm"])
def test_program(zone_file: Path, end: str) -> None:
    with program(zone_file, "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--log") as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "ready\n"
        *_, first, second = process.stderr.readline().split()
        for endpoint in (first, second):
            address, _, port = endpoint.rpartition(":")
            query = dns.message.make_query("ttl.example", "A")
            assert dns.query.udp(query, address, port=int(port), timeout=10).answer
        if end == "eof":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == "ttl.example A\n" * 2


@pytest.mark.parametrize("content", ["{", '{"a": {"A": "x"}}', '{"a": {"b": 1}}'])
def test_program_rejects_an_invalid_zone(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "zone.json"
    path.write_text(content)
    assert main(["--zone", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"python -m smtpd_filters.testing.dns: {path}: ")
