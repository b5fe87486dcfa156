from __future__ import annotations

import pytest

from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.events import Line, Malformed, Register, Result
from smtpd_filters.protocol.smtpd_side import SERVERS, SmtpdConnection
from smtpd_filters.protocol.versions import version

S, T = b"7641df9771b4ed00", b"1ef1c203cc576e5d"
#: From a recording of each: its lines before `config|ready`, and its events.
RECORDED = {
    (0, 7): (
        (
            b"config|smtpd-version|7.8.0-portable\n"
            b"config|protocol|0.7\n"
            b"config|smtp-session-timeout|300\n"
            b"config|subsystem|smtp-in\n"
            b"config|admd|vm\n"
            b"config|ready\n"
        ),
        b"report|0.7|1795226493.9|smtp-in|link-auth|%b|pass|us|er\n" % S,
    ),
    (0, 6): (
        (
            b"config|smtpd-version|6.8.0p2\n"
            b"config|smtp-session-timeout|300\n"
            b"config|subsystem|smtp-in\n"
            b"config|admd|vm\n"
            b"config|ready\n"
        ),
        b"report|0.6|1795226493.9|smtp-in|link-auth|%b|us|er|pass\n" % S,
    ),
}


@pytest.mark.parametrize("protocol", RECORDED, ids=str)
def test_a_server_is_written_as_it_was_recorded(protocol: tuple[int, int]) -> None:
    shake, auth = RECORDED[protocol]
    said = shake.split(b"\n", 1)[0].rpartition(b"|")[2].decode()
    smtpd = SmtpdConnection(protocol, said)
    assert smtpd.configure(admd="vm") == shake
    assert smtpd.report("link-auth", S, b"pass", b"us|er", time=b"1795226493.9") == auth


@pytest.mark.parametrize("protocol", SERVERS)
def test_its_output_is_legal(protocol: tuple[int, int]) -> None:
    smtpd, oracle = SmtpdConnection(protocol), Oracle()
    assert version(smtpd.smtpd_version) is not None
    oracle.from_smtpd(smtpd.configure(session_timeout=60))
    oracle.from_smtpd(smtpd.report("link-connect", S, b"r", b"pass", b"a:1", b"b:2"))
    oracle.from_smtpd(smtpd.request("connect", S, T, b"r|a"))
    oracle.from_filter(b"register|ready\nfilter-result|%b|%b|proceed\n" % (S, T))
    oracle.from_smtpd(smtpd.lines(S, T, [b"A: b", b"", b"..x"]))
    oracle.from_filter(b"".join(b"filter-dataline|%b|%b|%b\n" % (S, T, x) for x in (b"A: b", b".")))
    oracle.finish()
    oracle.verify()


def test_lines_of_a_message_need_not_be_all_of_it() -> None:
    smtpd = SmtpdConnection()
    head = b"filter|0.7|1700000000.000000|smtp-in|data-line|%b|%b|" % (S, T)
    assert smtpd.lines(S, T, [b"a", b"|"], end=False) == head + b"a\n" + head + b"|\n"
    assert smtpd.lines(S, T, [], end=True) == head + b".\n"
    assert smtpd.lines(S, T, [], end=False) == b""


ANSWERS = (
    b"register|report|smtp-in|tx-mail\n"
    b"register|report|smtp-out|tx-rcpt\n"
    b"register|filter|smtp-in|connect\n"
    b"register|ready\n"
    b"filter-result|%b|%b|reject|550 a|b\n"
    b"filter-dataline|%b|%b|x|y\n"
    b"nonsense\n"
) % (S, T, S, T)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_answers_are_read_however_they_are_cut(size: int) -> None:
    smtpd = SmtpdConnection()
    read = []
    for at in range(0, len(ANSWERS), size):
        read += list(smtpd.receive(ANSWERS[at : at + size]))
    assert [type(one) for one in read] == [*[Register] * 4, Result, Line, Malformed]
    assert (smtpd.reports, smtpd.phases, smtpd.ready) == ({"tx-mail"}, {"connect"}, True)
