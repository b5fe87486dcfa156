from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.oracle import Complaint, Oracle, judge, rules
from smtpd_filters.oracle.rules import RULES, Kind
from smtpd_filters.recording import Recording
from tests.effort import SHARE

FIXTURES = sorted(
    (Path(__file__).parent.parent.parent / "fixtures" / "protocol").glob("*/*.session")
)

# What the recordings' policies deserve; those that aren't named deserve nothing.
DESERVED = {
    "dataline-early-dot": ["mail-cut-short"],
    "dataline-malformed": ["mail-head-broken"],
    "dataline-unescaped-dot": ["mail-dot-lost"],
    "disconnect-at-auth": ["refusal-at-auth"],
    "junk-at-quit": ["junk-without-effect"],
    "reject-at-auth": ["refusal-at-auth"],
    "reject-at-connect": ["reject-at-connect"],
    "reject-at-quit": ["reject-at-quit"],
    "rewrite-at-commit": ["rewrite-at-commit"],
    "rewrite-at-connect": ["rewrite-at-connect"],
    "rewrite-at-data": ["rewrite-refused"],
    "rewrite-at-mail-from-1": ["rewrite-no-brackets"],
    "rewrite-at-quit": ["rewrite-refused"],
    "rewrite-at-rcpt-to-1": ["rewrite-no-brackets"],
    "rewrite-at-rset": ["rewrite-refused"],
    "rewrite-at-starttls": ["rewrite-refused"],
}
DESERVED_BY_SERVER = {
    "6.8.0p2": {
        "line-5000": ["mail-cut", "mail-cut"],
        "rewrite-at-noop": ["rewrite-refused"],
        **{
            f"report-at-{phase}": ["report-before-7"]
            for phase in (
                *("auth", "commit", "connect", "data"),
                *("ehlo", "mail-from", "noop", "rcpt-to"),
            )
        },
    },
    "7.8.0p1": {
        **{
            f"report-at-{phase}": ["report-as-parameter"]
            for phase in ("auth", "ehlo", "mail-from", "rcpt-to")
        },
        **{
            f"report-at-{phase}": ["report-as-response"]
            for phase in ("commit", "connect", "data", "noop")
        },
    },
}


def play(*conversation: bytes, server: str | None = None) -> Oracle:
    """Return an oracle that was fed these lines ("<" or ">" and the line), and finished."""
    oracle = Oracle(server)
    for entry in conversation:
        (oracle.from_smtpd if entry[:1] == b"<" else oracle.from_filter)(entry[1:] + b"\n")
    oracle.finish()
    return oracle


def names(complaints: list[Complaint]) -> list[str]:
    return [complaint.rule for complaint in complaints]


@pytest.mark.parametrize(
    "path", FIXTURES[::SHARE], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_recorded_sessions_have_the_complaints_of_their_policy(path: Path) -> None:
    recording = Recording.read(path)
    server = path.parent.name
    deserved = DESERVED_BY_SERVER[server].get(path.stem, DESERVED.get(path.stem, []))
    assert names(judge(recording.entries)) == deserved
    assert names(judge(recording.entries, recording.server_version)) == deserved
    # A real smtpd's lines are never odd.
    sides = {"<": b"<", ">": b">"}
    lines = [sides[direction] + line for direction, line in recording.entries if direction != "#"]
    assert play(*lines).oddities == []


def test_every_expected_complaint_has_a_recording() -> None:
    for server, deserved in DESERVED_BY_SERVER.items():
        recorded = {path.stem for path in FIXTURES if path.parent.name == server}
        assert not (deserved.keys() | DESERVED.keys()) - recorded


def request(phase: str, parameter: str = "", session: str = "a1") -> bytes:
    token = sum(phase.encode())
    line = f"<filter|0.7|1.5|smtp-in|{phase}|{session:0>16}|{token:016x}|{parameter}"
    return line.encode("latin-1")


def report(event: str, fields: str = "", session: str = "a1") -> bytes:
    return f"<report|0.7|1.5|smtp-in|{event}|{session:0>16}{fields}".encode()


def answer(phase: str, decision: str = "proceed", session: str = "a1") -> bytes:
    token = sum(phase.encode())
    return f">filter-result|{session:0>16}|{token:016x}|{decision}".encode("latin-1")


def line_out(content: str, session: str = "a1") -> bytes:
    token = sum(b"data-line")
    return f">filter-dataline|{session:0>16}|{token:016x}|{content}".encode("latin-1")


def line_in(content: str, session: str = "a1") -> bytes:
    return request("data-line", content, session)


def echo(*contents: str) -> list[bytes]:
    return [side(content) for content in contents for side in (line_in, line_out)]


ASK = request("helo", "client.example")
PROCEED = answer("helo")
S, T = b"00000000000000a1", b"%016x" % sum(b"helo")
HEAD = echo("Received: x", "\tby y", "Subject: t", "")

# One example or more of each rule: (rule, conversation).
BREACHES: list[tuple[str, list[bytes]]] = [
    ("line-too-long", [*HEAD, *echo("x" * 65_486, ".")]),
    ("line-too-long", [b">" + b"x" * 65_536]),
    ("line-unknown", [b">"]),
    ("line-unknown", [b">hello"]),
    ("line-unknown", [b">\r"]),
    ("line-unknown", [b">filter-result"]),
    ("line-unknown", [b">Filter-result|" + S + b"|" + T + b"|proceed"]),
    # A line break inside a reply text, or a data-line, ends one line and begins an unknown one.
    ("line-unknown", [ASK, answer("helo", "reject|550 no\nway")]),
    ("line-unknown", [*HEAD, line_in("a"), line_out("a\nb"), *echo(".")]),
    ("line-report", [b">report|0.7|1.5|smtp-in|filter-report|" + S + b"|x"]),
    ("line-incomplete", [b">filter-result|"]),
    ("line-incomplete", [b">filter-result|" + S]),
    ("line-incomplete", [b">filter-result|" + S + b"|" + T]),
    ("line-incomplete", [b">filter-dataline|" + S + b"|" + T]),
    ("register-unknown", [b">register|"]),
    ("register-unknown", [b">register|ready\r"]),
    ("register-unknown", [b">register|report|smtp-in|link-conect"]),
    ("register-unknown", [b">register|report|link-connect"]),
    ("register-unknown", [b">register|filter|smtp-in|mailfrom"]),
    ("register-unknown", [b">register|filter|smtp-in|*"]),
    ("register-unknown", [b">register|filter|smtp-out|helo"]),
    ("register-not-ready", [b"<config|ready", b">register|report|smtp-in|tx-mail"]),
    ("id-not-hex", [b">filter-result|nobody|" + T + b"|proceed"]),
    ("id-not-hex", [b">filter-result||" + T + b"|proceed"]),
    ("id-not-hex", [b">filter-result|" + S + b"0|" + T + b"|proceed"]),
    ("id-not-hex", [b">filter-dataline|0x1f|" + T + b"|."]),
    ("id-not-hex", [ASK, PROCEED, b">filter-result|" + S + b"|token|proceed"]),
    ("id-not-hex", [ASK, b">filter-result|" + S + b"|token|proceed"]),
    ("id-not-hex", [ASK, PROCEED, b">filter-dataline|" + S + b"|token|."]),
    ("session-unknown", [answer("helo", session="b2")]),
    ("session-unknown", [line_out("x", session="b2")]),
    ("token-unknown", [ASK, answer("rset")]),
    ("token-unknown", [*HEAD, b">filter-dataline|" + S + b"|" + T + b"|x", *echo(".")]),
    ("token-unchecked", [ASK, answer("rset", "reject|550 no")]),
    ("token-unchecked", [ASK, answer("rset", "junk")]),
    ("answer-unasked", [ASK, PROCEED, PROCEED]),
    ("answer-unasked", [ASK, PROCEED, answer("helo", "reject|550 no")]),
    ("answer-unasked", [*HEAD, *echo("."), answer("commit")]),
    ("answer-unasked", [report("link-connect"), answer("connect")]),
    ("result-in-data-line", [*HEAD, answer("data-line"), *echo(".")]),
    ("dataline-outside", [request("data"), answer("data"), line_out("x")]),
    ("dataline-outside", [ASK, line_out("x"), PROCEED]),
    ("dataline-outside", [*HEAD, *echo("."), report("tx-commit", "|1|2"), line_out("x")]),
    ("dataline-at-commit", [*HEAD, *echo("."), request("commit"), line_out("x"), answer("commit")]),
    ("dataline-after-dot", [*HEAD, *echo("."), line_out("x")]),
    ("never-answered", [ASK]),
    ("never-ended", [*HEAD, line_in("."), line_out("x")]),
    ("decision-malformed", [ASK, answer("helo", "PROCEED")]),
    ("decision-malformed", [ASK, answer("helo", "proceed ")]),
    ("decision-malformed", [ASK, answer("helo", "proceed|")]),
    ("decision-malformed", [ASK, answer("helo", "proceed\r")]),
    ("decision-malformed", [ASK, answer("helo", "junk|x")]),
    ("decision-malformed", [ASK, answer("helo", "reject")]),
    ("decision-malformed", [ASK, answer("helo", "disconnect")]),
    ("decision-malformed", [ASK, answer("helo", "rewrite")]),
    ("decision-malformed", [ASK, answer("helo", "")]),
    ("decision-malformed", [ASK, answer("helo", "tempfail|451 later")]),
    # The form is checked after a disconnect as well: an answer may race with that.
    ("decision-malformed", [ASK, report("link-disconnect"), answer("helo", "reject")]),
    ("junk-at-commit", [request("commit"), answer("commit", "junk")]),
    ("junk-without-effect", [request("rset"), answer("rset", "junk")]),
    ("junk-without-effect", [request("quit"), answer("quit", "junk")]),
    ("reject-at-connect", [request("connect"), answer("connect", "reject|550 no")]),
    ("reject-at-quit", [request("quit"), answer("quit", "reject|550 stay")]),
    ("rewrite-at-connect", [request("connect"), answer("connect", "rewrite|x")]),
    ("rewrite-at-commit", [request("commit"), answer("commit", "rewrite|x")]),
    ("rewrite-refused", [request("starttls"), answer("starttls", "rewrite|x")]),
    ("rewrite-refused", [request("data"), answer("data", "rewrite|x")]),
    ("rewrite-refused", [request("rset"), answer("rset", "rewrite|x")]),
    ("rewrite-refused", [request("quit"), answer("quit", "rewrite|x")]),
    (
        "rewrite-refused",
        [
            b"<config|smtpd-version|6.8.0p2",
            request("noop"),
            answer("noop", "rewrite|x"),
            b">register|ready",
        ],
    ),
    ("rewrite-no-brackets", [request("mail-from"), answer("mail-from", "rewrite|a@b.example")]),
    ("rewrite-no-brackets", [request("rcpt-to"), answer("rcpt-to", "rewrite|a@b.example")]),
    ("rewrite-no-brackets", [request("rcpt-to"), answer("rcpt-to", "rewrite|")]),
    ("rewrite-no-name", [ASK, answer("helo", "rewrite|")]),
    ("rewrite-no-name", [ASK, answer("helo", "rewrite|two names")]),
    ("rewrite-no-mechanism", [request("auth", "PLAIN"), answer("auth", "rewrite|")]),
    ("refusal-at-auth", [request("auth", "PLAIN AGEAYg=="), answer("auth", "reject|550 no")]),
    ("refusal-at-auth", [request("auth", "X Y"), answer("auth", "disconnect|421 no")]),
    ("report-before-7", [ASK, answer("helo", "report|x")]),
    (
        "report-before-7",
        [b"<config|smtpd-version|6.8.0p2", request("commit"), answer("commit", "report|x")],
    ),
    (
        "report-as-parameter",
        [b"<config|smtpd-version|7.8.0-portable", ASK, answer("helo", "report|x")],
    ),
    (
        "report-as-response",
        [b"<config|smtpd-version|7.8.0-portable", request("noop"), answer("noop", "report|x")],
    ),
    *(
        ("reply-no-code", [ASK, answer("helo", f"{decision}|{text}")])
        for decision in ("reject", "disconnect")
        for text in ("", "550", "550 ", "250 x", "550-x", "no", "5x0 no", "3550 no")
    ),
    ("reply-too-long", [ASK, answer("helo", "reject|550 " + "x" * 5_000)]),
    ("text-control", [ASK, answer("helo", "reject|550 no\rway")]),
    ("text-control", [ASK, answer("helo", "disconnect|550 no\0way")]),
    ("text-control", [request("rcpt-to"), answer("rcpt-to", "rewrite|<a@b\r>")]),
    ("mail-cut", [b"<config|smtpd-version|7.3.0", *HEAD, *echo("x" * 1_998, ".")]),
    ("mail-nul", [*HEAD, line_in("ab"), line_out("a\0b"), *echo(".")]),
    ("mail-cr", [*HEAD, line_in("a"), line_out("a\r"), *echo(".")]),
    ("mail-dot-lost", [*HEAD, line_in("..a"), line_out(".a"), *echo(".")]),
    ("mail-cut-short", [*HEAD, line_out("."), line_in("a"), line_in("b"), line_in(".")]),
    ("mail-head-broken", [line_in("A: b"), line_out("A b"), *echo(".")]),
    ("mail-head-broken", [line_in("A: b"), line_in(" c"), line_out(" c"), *echo(".")]),
    (
        "mail-head-broken",
        [*echo("A: b"), line_in(""), line_in("body"), line_out("body"), *echo(".")],
    ),
]


@pytest.mark.parametrize(
    ("rule", "conversation"),
    BREACHES,
    ids=[f"{number}-{rule}" for number, (rule, _) in enumerate(BREACHES)],
)
def test_each_rule_by_example(rule: str, conversation: list[bytes]) -> None:
    complaints = play(*conversation).complaints
    # A wrong answer leaves its session without the right one; other rules stand alone.
    others = {"never-answered", "never-ended", "answer-unasked"} - {rule}
    assert [name for name in names(complaints) if name not in others] == [rule]
    assert complaints[0].kind is RULES[complaints[0].rule].kind
    assert str(complaints[0]).startswith(f"{complaints[0].kind.name} {complaints[0].rule}: ")


def test_every_rule_has_an_example() -> None:
    shown = {rule for rule, _ in BREACHES}
    assert shown | {"line-unfinished"} == set(RULES)


def test_every_kind_is_used_and_every_rule_named_in_the_tables_exists() -> None:
    assert {rule.kind for rule in RULES.values()} == set(Kind)
    used = [*rules.UNFIT.values(), *(name for _, name in rules.NEEDS.values())]
    assert set(used) <= set(RULES)
    for _, phase in [*rules.UNFIT, *rules.NEEDS]:
        assert phase in rules.PHASES


@pytest.mark.parametrize("kind", ["never-answered", "never-ended"])
def test_the_real_session_hangs_when_another_is_answered(kind: str) -> None:
    if kind == "never-answered":
        complaints = play(ASK, answer("helo", session="b2")).complaints
    else:
        complaints = play(*HEAD, line_in("."), line_out(".", session="b2")).complaints
    assert names(complaints) == ["session-unknown", kind]


def test_swapping_session_and_token() -> None:
    complaints = play(ASK, b">filter-result|" + T + b"|" + S + b"|proceed").complaints
    assert names(complaints) == ["session-unknown", "never-answered"]


def test_a_last_line_without_an_end() -> None:
    oracle = Oracle()
    oracle.from_filter(b"register|ready\nfilter-result|")
    assert oracle.complaints == []
    oracle.finish()
    assert names(oracle.complaints) == ["line-unfinished"]


def test_a_long_last_line_without_an_end_hangs_the_server() -> None:
    oracle = Oracle()
    oracle.from_filter(b"x" * 65_536)
    oracle.finish()
    assert names(oracle.complaints) == ["line-too-long"]


ALL_FINE: list[list[bytes]] = [
    [],
    # Registration: twice, *, late, on smtp-out, after ready.
    [
        b"<config|ready",
        b">register|report|smtp-in|*",
        b">register|report|smtp-in|tx-mail",
        b">register|report|smtp-in|tx-mail",
        b">register|report|smtp-out|timeout",
        b">register|ready",
        b">register|filter|smtp-in|wiz",
        b">register|ready",
    ],
    [ASK, PROCEED],
    [ASK, answer("helo", "junk")],
    [ASK, answer("helo", "reject|550 5.7.1 a|bar and caf\xe9\tand 100%")],
    [ASK, answer("helo", "disconnect|421 4.7.0 later")],
    [ASK, answer("helo", "reject|550 " + "x" * 4_996)],
    [ASK, answer("helo", "rewrite|other.example")],
    [request("connect", "x|[::1]"), answer("connect", "disconnect|550 no")],
    [request("connect", "x|[::1]"), answer("connect", "reject|421 4.7.0 no")],
    [request("auth", "LOGIN"), answer("auth", "rewrite|PLAIN AGEAYg==")],
    [request("mail-from", ""), answer("mail-from", "rewrite|<>")],
    [request("rcpt-to", "a@b"), answer("rcpt-to", "rewrite|<c@d> NOTIFY=NEVER")],
    [request("noop", "x"), answer("noop", "rewrite|x")],
    # Two sessions share the tokens, not the requests.
    [ASK, request("helo", "b", session="b2"), answer("helo", session="b2"), PROCEED],
    # An answer after a disconnect is optional.
    [report("link-connect"), ASK, report("link-disconnect"), PROCEED],
    [report("link-connect"), ASK, report("link-disconnect"), line_out("x")],
    [report("link-connect"), ASK, report("link-disconnect")],
    [report("link-connect"), *HEAD, line_in("."), report("link-disconnect")],
    # Disconnected in DATA: rollback and reset, no dot; later answers are optional and ignored.
    [*HEAD, line_in("a"), report("tx-rollback", "|1"), line_out("a")],
    [*HEAD, line_in("a")],
    # The same for one whose link-disconnect isn't registered; and a later session.
    [
        *HEAD,
        line_in("a"),
        report("tx-reset", "|1"),
        request("helo", "b", session="b2"),
        answer("helo", session="b2"),
    ],
    # Only reports of other sessions' transactions.
    [report("tx-reset", "|1"), report("tx-commit", "|1|2", session="b2")],
    # Two messages in one connection, with nothing but data-lines registered.
    [*HEAD, *echo("."), *HEAD, *echo(".")],
    [
        *HEAD,
        *echo("."),
        request("commit"),
        answer("commit", "reject|550 no"),
        report("tx-data", "|1|permfail"),
        report("tx-rollback", "|1"),
        report("tx-reset", "|1"),
    ],
    # A message that is held until its dot, shortened, emptied.
    [line_in("A: b"), line_in(""), line_in("c"), line_in("."), line_out("A: b"), line_out(".")],
    [line_in("A: b"), line_in("."), line_out(".")],
    # Unusual bytes of the client may be passed on.
    [*HEAD, *echo("\ra\r", "a\0b", "..b", ".c", "|d|", "\xff", ".")],
    [*echo("Received: x", "this is no header", ".x", "", "."), request("commit"), answer("commit")],
    [*HEAD, *echo("x" * 65_485, ".")],
    [b"<config|smtpd-version|7.4.0", *HEAD, *echo("x" * 1_998, ".")],
    [b"<config|smtpd-version|6.8.0p2", *HEAD, *echo("x" * 1_997, ".")],
    # Stuck in DATA after a rewrite at commit (which has its own rule): more data-lines.
    [*HEAD, *echo("."), request("commit"), answer("commit"), *echo("MAIL FROM:<a@b>")],
    # Upper case is the same number.
    [request("helo", session="ab"), answer("helo", session="AB")],
    # Before 0.5 the token comes first.
    [
        b"<filter|0.4|1|smtp-in|helo|" + S + b"|" + T + b"|x",
        b">filter-result|" + T + b"|" + S + b"|proceed",
    ],
    [
        b"<filter|0.4|1|smtp-in|data-line|" + S + b"|" + T + b"|.",
        b">filter-dataline|" + T + b"|" + S + b"|.",
    ],
]


@pytest.mark.parametrize("conversation", ALL_FINE)
def test_no_complaint(conversation: list[bytes]) -> None:
    play(*conversation).verify()


# What no smtpd would write: (conversation); nothing may be demanded of the filter then.
ODD: list[list[bytes]] = [
    [b"<"],
    [b"<hello"],
    [b"<report|0.7|1.5"],
    [b"<filter|0.7|1.5|smtp-in|helo|" + S],
    [b"<filter|0.7|1.5|smtp-in|helo|" + S + b"|token|x"],
    [b"<filter|0.7|1.5|smtp-in|helo|" + S + b"|" + T],
    [b"<filter|x|1.5|smtp-in|helo|" + S + b"|" + T + b"|x"],
    [b"<filter|0.7|1.5|smtp-out|helo|" + S + b"|" + T + b"|x"],
    [b"<filter|0.7|1.5|smtp-in|helo|a1|" + T + b"|x"],
    # Two requests at once in one session; a request in the middle of a message.
    [ASK, request("quit"), PROCEED, PROCEED],
    [*HEAD, request("commit"), line_out("a"), answer("commit")],
    [*HEAD, ASK, PROCEED],
    # Data-lines without content, with another token, after the dot, during a request.
    [b"<filter|0.7|1.5|smtp-in|data-line|" + S + b"|" + T, line_out("a")],
    [*HEAD, b"<filter|0.7|1.5|smtp-in|data-line|" + S + b"|" + T + b"|x", line_out("a")],
    [*HEAD, line_in("."), line_in("a"), line_out("a")],
    [ASK, line_in("a"), line_out("a"), PROCEED, PROCEED],
    # A session that is used again after its disconnect.
    [report("link-disconnect"), ASK, PROCEED, PROCEED],
]


@pytest.mark.parametrize("conversation", ODD)
def test_lines_that_smtpd_never_writes_are_odd(conversation: list[bytes]) -> None:
    oracle = play(*conversation)
    oracle.verify(odd=True)
    with pytest.raises(AssertionError, match="no smtpd writes: b'"):
        oracle.verify()


def test_a_session_that_connects_twice_is_lost() -> None:
    play(report("link-connect"), report("link-connect"), ASK).verify(odd=True)


def test_the_form_is_checked_in_a_lost_session() -> None:
    lost = [ASK, request("quit")]
    complaints = play(*lost, answer("helo", "reject"), b">filter-result|x|y|proceed").complaints
    assert names(complaints) == ["decision-malformed", "id-not-hex"]


def test_a_wrong_answer_closes_the_request() -> None:
    assert names(play(ASK, answer("helo", "Proceed")).complaints) == ["decision-malformed"]


def test_the_parameter_overrides_the_reported_version() -> None:
    long = [b"<config|smtpd-version|7.8.0-portable", *HEAD, *echo("x" * 5_000, ".")]
    assert names(play(*long).complaints) == []
    assert names(play(*long, server="OpenSMTPD 6.8.0p2").complaints) == ["mail-cut"]


CLEAN = [
    path for path in FIXTURES if path.stem not in DESERVED | DESERVED_BY_SERVER[path.parent.name]
]


@pytest.mark.parametrize("path", CLEAN[::5], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_answer_of_a_good_session_corrupted(path: Path) -> None:
    entries = Recording.read(path).entries
    answers = [
        (place, line)
        for place, (direction, line) in enumerate(entries)
        if direction == ">" and line.startswith(b"filter-")
    ]
    assert answers
    for place, line in answers:
        before, after = entries[:place], entries[place + 1 :]
        kind, session, token, rest = line.split(b"|", 3)
        swapped = b"|".join([kind, token, session, rest])
        assert "session-unknown" in names(judge([*before, (">", swapped), *after]))
        garbled = b"|".join([kind, session, b"x" + token[1:], rest])
        assert "id-not-hex" in names(judge([*before, (">", garbled), *after]))
        ended = (">", line + b"\r")
        expected = "decision-malformed" if rest in {b"proceed", b"junk"} else "text-control"
        if kind == b"filter-dataline":
            expected = "mail-cr"
        if b"\r" not in line and not (kind == b"filter-dataline" and rest == b"."):
            assert expected in names(judge([*before, ended, *after]))
        if kind == b"filter-result":
            twice = names(judge([*before, (">", line), (">", line), *after]))
            assert twice == ["answer-unasked"]


def test_an_unknown_version_counts_as_new() -> None:
    assert names(play(*HEAD, *echo("x" * 5_000, "."), server="unknown").complaints) == []


@pytest.mark.parametrize("parameter", ["PLAIN", "login", ""])
def test_what_has_no_credentials_may_be_refused_at_auth(parameter: str) -> None:
    assert play(request("auth", parameter), answer("auth", "reject|550 no")).complaints == []


def test_credentials_are_not_repeated() -> None:
    oracle = play(request("auth", "PLAIN c2VjcmV0"))
    both = play(request("auth", "PLAIN c2VjcmV0"), answer("auth", "rewrite|PLAIN c2VjcmV0\r"))
    assert oracle.complaints
    assert both.complaints
    odd = play(request("auth", "PLAIN c2VjcmV0"), request("auth", "PLAIN c2VjcmV0"))
    malformed = play(request("auth", "PLAIN c2VjcmV0"), answer("auth", "rewrite PLAIN c2VjcmV0"))
    assert odd.oddities
    shown = [
        *(complaint.line for watch in (oracle, both, malformed) for complaint in watch.complaints),
        *odd.oddities,
    ]
    assert b"c2VjcmV0" not in b"".join(shown)


def test_long_lines_are_shown_truncated() -> None:
    (complaint,) = play(b">" + b"x" * 100_000).complaints
    assert len(complaint.line) == 120


def test_verify_lists_all() -> None:
    with pytest.raises(AssertionError, match=r"(?s)ENDS_SERVER line-unknown.*HANGS_SESSION never"):
        play(ASK, b">x").verify()


def test_judge_ignores_remarks() -> None:
    assert judge([("#", b"EOF on stdin"), (">", b"register|ready")]) == []


WORDS = st.sampled_from(
    [
        b"filter",
        b"report",
        b"config",
        b"register",
        b"filter-result",
        b"filter-dataline",
        b"ready",
        b"0.7",
        b"0.6",
        b"0.4",
        b"1.5",
        b"smtp-in",
        b"smtp-out",
        S,
        T,
        b"00000000000000b2",
        b"zz",
        b"link-connect",
        b"link-disconnect",
        b"tx-reset",
        b"helo",
        b"data",
        b"data-line",
        b"commit",
        b"proceed",
        b"junk",
        b"reject",
        b"rewrite",
        b"report",
        b"550 no",
        b".",
        b"",
        b"\r",
        b"\x00",
        b"%016x" % sum(b"data-line"),
        b"smtpd-version",
        b"6.8.0p2",
    ]
)
GRAMMATICAL = st.lists(WORDS, max_size=9).map(b"|".join)
VALID = st.sampled_from(
    [entry[1:] for _, conversation in BREACHES for entry in conversation if len(entry) < 200]
    + [entry[1:] for conversation in ALL_FINE for entry in conversation if len(entry) < 200]
)
TRAFFIC = st.lists(
    st.tuples(
        st.sampled_from("<>"), VALID | GRAMMATICAL | st.binary(), st.just(b"\n") | st.just(b"")
    ),
    max_size=30,
)


def run(chunks: list[tuple[str, bytes]]) -> tuple[list[Complaint], list[bytes]]:
    oracle = Oracle()
    for side, data in chunks:
        (oracle.from_smtpd if side == "<" else oracle.from_filter)(data)
    oracle.finish()
    return oracle.complaints, oracle.oddities


@given(TRAFFIC, st.integers(1, 7))
def test_no_bytes_raise_and_chunks_have_no_effect(
    traffic: list[tuple[str, bytes, bytes]], size: int
) -> None:
    whole = [(side, line + end) for side, line, end in traffic]
    pieces = [
        (side, data[start : start + size])
        for side, data in whole
        for start in range(0, len(data), size)
    ]
    complaints, oddities = run(whole)
    assert run(pieces) == (complaints, oddities)
    for complaint in complaints:
        assert complaint.rule in RULES
        assert len(complaint.line) <= 120


@pytest.mark.parametrize("path", FIXTURES[::7], ids=lambda path: path.stem)
def test_a_byte_at_a_time(path: Path) -> None:
    recording = Recording.read(path)
    whole = [(side, line + b"\n") for side, line in recording.entries if side != "#"]
    assert run([(side, bytes([byte])) for side, line in whole for byte in line]) == run(whole)
