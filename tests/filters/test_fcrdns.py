from __future__ import annotations

import pytest

from smtpd_filters.chain import Chain
from smtpd_filters.filters.fcrdns import Fcrdns, main
from smtpd_filters.main import set_up
from smtpd_filters.runtime.log import Log
from smtpd_filters.testing import Conversation, DNSServer, Verdict
from smtpd_filters.testing.dns import host, merge
from tests.effort import brief, some
from tests.filters.executables import answered, come, complaint, loaded_to_set_up, serve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

PHASES = ("connect", "helo", "mail-from", "rcpt-to")
NAMED: dict[str, Any] = {"rdns": "mail.example.net", "fcrdns": "pass"}
FORGED: dict[str, Any] = {"rdns": "mail.example.net", "fcrdns": "fail"}
UNNAMED: dict[str, Any] = {"rdns": None, "fcrdns": "fail"}
UNKNOWN: dict[str, Any] = {"rdns": None, "fcrdns": "error"}
HALF_KNOWN: dict[str, Any] = {"rdns": "mail.example.net", "fcrdns": "error"}


def verdict(*flags: str, **client: Any) -> Verdict:
    with Conversation(Fcrdns, *flags) as smtpd:
        return come(smtpd, **client)


# -- smtpd's word --------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("action", ["junk", "reject", "disconnect"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("client", "text"),
    [
        (UNNAMED, "Your IP address has no reverse DNS name"),
        (FORGED, "The reverse DNS name of your IP address does not lead back to the address"),
    ],
)
def test_the_action_is_taken_in_its_phase(
    client: dict[str, Any], text: str, phase: str, action: str, address: str
) -> None:
    said = verdict("--action", action, "--phase", phase, **client, address=address)
    # What is decided of the sender is marked where there is a message to mark.
    marked = {"mail-from": "data"}.get(phase, phase) if action == "junk" else phase
    assert said.phase == {"helo": "ehlo"}.get(marked, marked)
    # A bare reject at connect would leave the connection open.
    closes = action == "disconnect" or (action, phase) == ("reject", "connect")
    assert said.verb == ("disconnect" if closes else action)
    # On smtpd's word nothing is permanent: it reports a DNS that fails as a client that does.
    code = 421 if closes else 450
    assert said.reply == ("" if action == "junk" else f"{code} 4.7.25 {text}")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("action", ["junk", "reject", "disconnect"])
def test_junk_is_possible_only_where_it_is_the_action(action: str, phase: str) -> None:
    settings = Fcrdns.Options(action=action, phase=phase)
    policy = Fcrdns(settings)
    set_up(policy, Log())
    assert policy.registration.junk is (action == "junk")


@pytest.mark.parametrize(
    ("require", "client", "passes"),
    [
        ("fcrdns", NAMED, True),
        ("fcrdns", FORGED, False),
        ("fcrdns", UNNAMED, False),
        ("rdns", NAMED, True),
        ("rdns", FORGED, True),
        ("rdns", HALF_KNOWN, True),
        ("rdns", UNNAMED, False),
    ],
)
def test_what_is_required(require: str, client: dict[str, Any], *, passes: bool) -> None:
    assert (verdict("--require", require, **client).verb == "proceed") is passes


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("action", ["junk", "reject", "disconnect"])
@pytest.mark.parametrize(
    ("require", "client"), [("fcrdns", UNKNOWN), ("fcrdns", HALF_KNOWN), ("rdns", UNKNOWN)]
)
def test_a_failure_that_smtpd_reports_is_never_held_against_the_client(
    require: str, client: dict[str, Any], action: str, phase: str
) -> None:
    flags = ("--require", require, "--action", action, "--phase", phase)
    assert verdict(*flags, **client).verb == "proceed"
    assert verdict(*flags, "--on-error", "junk", **client).verb == "junk"
    said = verdict(*flags, "--on-error", "tempfail", **client)
    assert said.reply.startswith("421 4.4.3 " if phase == "connect" else "451 4.4.3 ")


def test_a_failure_is_logged_with_its_cause_and_without_a_traceback() -> None:
    with Conversation(Fcrdns, "--on-error", "tempfail") as smtpd:
        client = smtpd.connect(**UNKNOWN)
        other = smtpd.connect(**UNKNOWN)
        cause = 'cause="smtpd reports a DNS failure"'
        cause += ' reply="421 4.4.3 Temporary failure, please try again later"'
        again = 'reason="failed as logged before"'
        assert smtpd.log == [
            f"{client.id} fcrdns connect result=disconnect {cause}",
            f"{other.id} fcrdns connect result=disconnect {again} {cause}",
        ]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("verify", [False, True])
def test_local_and_allowed_clients_pass(phase: str, *, verify: bool) -> None:
    flags = ["--phase", phase, "--allow", "{ 192.0.2.0/24, 2001:db8::/32 }"]
    flags += ["--verify", "--nameserver", "127.0.0.1:9"] if verify else []
    assert verdict(*flags, local=True, rdns=None).verb == "proceed"
    assert verdict(*flags, **UNNAMED, address="192.0.2.7").verb == "proceed"
    assert verdict(*flags, **UNNAMED, address="2001:db8::7").verb == "proceed"


@pytest.mark.parametrize("phase", ["mail-from", "rcpt-to"])
@pytest.mark.parametrize("verify", [False, True])
def test_authenticated_clients_pass_where_they_are_known(phase: str, *, verify: bool) -> None:
    flags = ["--phase", phase]
    flags += ["--verify", "--nameserver", "127.0.0.1:9"] if verify else []
    assert verdict(*flags, **UNNAMED, user="anna").verb == "proceed"


def test_who_has_authenticated_is_asked_only_where_somebody_may_have() -> None:
    for phase in PHASES:
        with Conversation(Fcrdns, "--phase", phase) as smtpd:
            assert ("link-auth" in smtpd.reports) is (phase in {"mail-from", "rcpt-to"})
            assert "link-tls" not in smtpd.reports
            also = {"helo": {"ehlo"}, "mail-from": {"data"}}.get(phase, set())
            assert smtpd.phases == {phase} | also


def test_only_junk_takes_another_phase() -> None:
    for action in ("reject", "disconnect"):
        with Conversation(Fcrdns, "--phase", "mail-from", "--action", action) as smtpd:
            assert smtpd.phases == {"mail-from"}


@pytest.mark.parametrize("reply", ["550 5.7.25 See example.org", "451 4.7.1 See example.org"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_reply_is_the_operators(server: DNSServer, phase: str, reply: str) -> None:
    flags = ("--action", "reject", "--phase", phase, "--reply", reply)
    assert verdict(*flags, **UNNAMED).reply == reply
    assert verdict(*verifying(server, *flags), **UNNAMED, address="192.0.2.5").reply == reply


def test_the_reason_is_logged() -> None:
    with Conversation(Fcrdns) as smtpd:
        come(smtpd, **UNNAMED)
        come(smtpd, **FORGED, address="192.0.2.9")
        assert 'reason="no reverse name"' in smtpd.log[0]
        assert 'reason="rdns mail.example.net not confirmed for 192.0.2.9"' in smtpd.log[1]


# -- its own look-ups ----------------------------------------------------------------------

ZONE = merge(
    host("mail.good.example", "192.0.2.9", "2001:db8::9"),
    {
        # Two names, of which smtpd may see the wrong one.
        "8.2.0.192.in-addr.arpa": {"PTR": ["other.example", "second.example"]},
        "second.example": {"A": ["192.0.2.8"]},
        "other.example": {"A": ["192.0.2.99"]},
        # A name that is another's.
        "7.2.0.192.in-addr.arpa": {"PTR": ["mail.good.example"]},
        # A name that doesn't exist.
        "6.2.0.192.in-addr.arpa": {"PTR": ["missing.example"]},
        # An IPv4 address under a name for IPv6.
        "4.2.0.192.in-addr.arpa": {"PTR": ["six.example"]},
        "six.example": {"AAAA": ["2001:db8::4"]},
        # Names that smtpd drops.
        "3.2.0.192.in-addr.arpa": {"PTR": [".", r"a\032b.example", r"\255.example"]},
        "2.2.0.192.in-addr.arpa": {"PTR": [".", "named.example"]},
        "1.2.0.192.in-addr.arpa": {"PTR": [r"\255" * 63 + f".{n}.example" for n in range(600)]},
    },
)


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(ZONE) as running:
        yield running


def verifying(server: DNSServer, *flags: str) -> tuple[str, ...]:
    action = () if "--action" in flags else ("--action", "reject")
    return ("--verify", "--nameserver", f"{server.address}:{server.port}", *action, *flags)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("action", ["reject", "disconnect"])
def test_what_it_has_found_out_itself_is_permanent(
    server: DNSServer, action: str, phase: str
) -> None:
    flags = verifying(server, "--action", action, "--phase", phase)
    code = 554 if phase == "connect" else 550
    said = verdict(*flags, **UNNAMED, address="192.0.2.5")
    assert said.reply == f"{code} 5.7.25 Your IP address has no reverse DNS name"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("told", [FORGED, UNNAMED, UNKNOWN, HALF_KNOWN])
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.9", ""),
        ("2001:db8::9", ""),
        ("192.0.2.8", ""),
        ("192.0.2.7", "rdns mail.good.example not confirmed for 192.0.2.7"),
        ("192.0.2.6", "rdns missing.example not confirmed for 192.0.2.6"),
        ("192.0.2.5", "no reverse name"),
        ("192.0.2.4", "rdns six.example not confirmed for 192.0.2.4"),
        ("2001:db8::5", "no reverse name"),
    ],
)
def test_it_looks_for_itself_where_smtpd_did_not_confirm(
    server: DNSServer, address: str, reason: str, told: dict[str, Any], phase: str
) -> None:
    with Conversation(Fcrdns, *verifying(server, "--phase", phase)) as smtpd:
        said = come(smtpd, **told, address=address)
        assert said.refused is bool(reason)
        if reason:
            assert said.reply.startswith("554 5.7.25" if phase == "connect" else "550 5.7.25")
            assert f'reason="{reason}"' in smtpd.log[0]


@pytest.mark.parametrize(
    ("address", "passes"),
    [
        *(("192.0.2.7", True), ("192.0.2.6", True), ("192.0.2.2", True)),
        *(("192.0.2.5", False), ("192.0.2.3", False)),
    ],
)
def test_any_name_will_do_where_only_that_is_required(
    server: DNSServer, address: str, *, passes: bool
) -> None:
    said = verdict(*verifying(server, "--require", "rdns"), **UNNAMED, address=address)
    assert (said.verb == "proceed") is passes


def test_a_name_that_was_not_read_may_do(server: DNSServer) -> None:
    flags = verifying(server, "--require", "rdns", "--on-error", "tempfail")
    said = verdict(*flags, **UNNAMED, address="192.0.2.1")
    assert said.reply.startswith("421 4.4.3 ")


def test_an_address_in_place_of_a_name_is_not_confirmed(server: DNSServer) -> None:
    client = {"rdns": "192.0.2.7", "fcrdns": "pass", "address": "192.0.2.7"}
    with Conversation(Fcrdns) as smtpd:
        come(smtpd, **client)
        assert 'reason="rdns 192.0.2.7 not confirmed for 192.0.2.7"' in smtpd.log[0]
    assert verdict(*verifying(server), **client).refused
    assert verdict("--require", "rdns", **client).verb == "proceed"


def test_a_name_that_smtpd_has_cut_is_not_held_against_the_client(server: DNSServer) -> None:
    cut: dict[str, Any] = {"rdns": f"{'h' * 44}.mail.good.example.n", "fcrdns": "fail"}
    assert len(cut["rdns"]) == 64
    assert verdict("--action", "reject", **cut, address="192.0.2.9").verb == "proceed"
    with Conversation(Fcrdns, "--on-error", "tempfail") as smtpd:
        assert come(smtpd, **cut).reply.startswith("421 4.4.3 ")
        assert 'cause="smtpd cuts reverse names after 64 characters"' in smtpd.log[0]
    assert verdict(*verifying(server), **cut, address="192.0.2.9").verb == "proceed"
    assert verdict(*verifying(server), **cut, address="192.0.2.7").refused


def test_what_smtpd_confirmed_is_not_looked_up(server: DNSServer) -> None:
    server.queries.clear()
    assert verdict(*verifying(server), **NAMED, address="192.0.2.7").verb == "proceed"
    assert verdict(*verifying(server, "--require", "rdns"), **FORGED).verb == "proceed"
    assert server.queries == []


@pytest.mark.parametrize("phase", PHASES[1:])
def test_the_look_up_starts_when_the_client_is_known(server: DNSServer, phase: str) -> None:
    server.queries.clear()
    with Conversation(Fcrdns, *verifying(server, "--phase", phase)) as smtpd:
        smtpd.connect(**NAMED, address="192.0.2.7")
        smtpd.connect(**FORGED, address="127.0.0.1")
        assert server.queries == []
        there = smtpd.connect(**FORGED, address="192.0.2.7")
        asked = [("7.2.0.192.in-addr.arpa", "PTR")]
        for _ in range(100):  # it is sent by the loop, which a request runs
            there.noop()
        assert server.queries[:1] == asked


def test_what_is_known_is_not_asked_again(server: DNSServer) -> None:
    server.queries.clear()
    flags = verifying(server, "--phase", "rcpt-to", "--action", "junk")
    with Conversation(Fcrdns, *flags) as smtpd:
        for _ in range(2):
            there = smtpd.connect(**FORGED, address="192.0.2.7")
            there.ehlo()
            there.mail_from("bob@example.net")
            for name in ("anna", "bob", "carl"):
                assert there.rcpt_to(f"{name}@example.org").verb == "junk"
    assert server.queries == [("7.2.0.192.in-addr.arpa", "PTR"), ("mail.good.example", "A")]


def test_the_recipients_of_a_session_get_one_answer() -> None:
    # The session keeps what came of it, when the resolver has forgotten.
    with DNSServer({}) as empty:
        flags = verifying(empty, "--phase", "rcpt-to")
        with Conversation(Fcrdns, *flags) as smtpd:
            there = smtpd.connect(**UNNAMED)
            there.ehlo()
            there.mail_from("bob@example.net")
            for name in ("anna", "bob"):
                assert there.rcpt_to(f"{name}@example.org").refused
                smtpd.filters[0].dns._cache.clear()  # type: ignore[attr-defined]
        assert len(empty.queries) == 1


REVERSE = "9.2.0.192.in-addr.arpa"
GOOD = host("mail.good.example", "192.0.2.9")


def broken(name: str, **behaviour: object) -> dict[str, dict[str, Any]]:
    return merge(GOOD, {name: {key.replace("_", "-"): value for key, value in behaviour.items()}})


# Each of these is no statement about the client.
KINDS = ("servfail", "refused", "drop", "wrong_id", "wrong_name", "wrong_owner", "malformed")
SILENT = ("drop", "wrong_id", "wrong_name", "malformed")
# With a time-out: where somebody answers too, there has to be time for it.
FAULTS: list[tuple[str, float, Mapping[str, Mapping[str, Any]]]] = [
    (
        f"{kind} of the {which} name",
        timeout if kind in SILENT else 15,
        broken(name, **{kind: True}),
    )
    for which, timeout, name in (
        ("reverse", 0.02, REVERSE),
        ("forward", 0.9, "mail.good.example"),
    )
    for kind in KINDS
]
FAULTS += [
    (
        "more names than are looked at",
        15,
        {REVERSE: {"PTR": [f"n{n}.example" for n in range(11)]}},
    ),
    (
        "more addresses than are read",
        15,
        {
            REVERSE: {"PTR": ["huge.example"]},
            "huge.example": {"A": [f"10.0.0.{n}" for n in range(200)]},
        },
    ),
    ("late reverse name", 0.02, broken(REVERSE, delay=60)),
    ("late forward name", 0.9, broken("mail.good.example", delay=60)),
    ("truncated, and no TCP", 15, broken(REVERSE, truncate=True, no_tcp=True)),
    (
        "alias in a circle",
        15,
        {
            REVERSE: {"PTR": ["a.example"]},
            "a.example": {"CNAME": ["b.example"]},
            "b.example": {"CNAME": ["a.example"]},
        },
    ),
]


@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
@pytest.mark.parametrize(
    ("timeout", "zone"), [pytest.param(*fault[1:], id=fault[0]) for fault in some(FAULTS)]
)
def test_a_broken_dns_is_never_held_against_the_client(
    timeout: float, zone: Mapping[str, Mapping[str, Any]], on_error: str
) -> None:
    with DNSServer(zone) as faulty:
        flags = verifying(faulty, "--timeout", f"{brief(timeout)}s", "--on-error", on_error)
        with Conversation(Fcrdns, *flags, "--phase", "mail-from") as smtpd:
            said = come(smtpd, **UNNAMED, address="192.0.2.9")
            assert said.verb == {"tempfail": "reject"}.get(on_error, on_error)
            if on_error == "tempfail":
                assert said.reply == "451 4.4.3 Temporary failure, please try again later"
            assert "cause=" in smtpd.log[0]
            assert "Error" not in smtpd.log[0]


def test_a_server_that_answers_at_the_second_time_is_good_enough() -> None:
    zone = broken(REVERSE, flap=True)
    with DNSServer(zone) as flapping:
        flags = verifying(flapping, "--timeout", f"{brief(0.5)}s", "--on-error", "tempfail")
        assert verdict(*flags, **UNNAMED, address="192.0.2.9").verb == "proceed"


def test_a_forged_answer_beside_the_true_one_changes_nothing() -> None:
    with DNSServer(broken(REVERSE, spoof=True)) as server:
        assert verdict(*verifying(server), **UNNAMED, address="192.0.2.9").verb == "proceed"


def test_the_next_name_server_is_asked_when_one_is_dead(server: DNSServer) -> None:
    with DNSServer(broken(REVERSE, drop=True)) as dead:
        flags = ("--verify", "--timeout", f"{brief(0.5)}s", "--on-error", "tempfail")
        servers = [f"--nameserver={each.address}:{each.port}" for each in (dead, server)]
        assert verdict(*flags, *servers, **UNNAMED, address="192.0.2.9").verb == "proceed"
        assert dead.asked(REVERSE, "PTR")


def test_nobody_listening_is_a_temporary_failure() -> None:
    # The system gives this port to nobody.
    flags = ("--verify", "--nameserver=127.0.0.1:9", "--on-error", "tempfail")
    assert verdict(*flags, **UNNAMED).reply.startswith("421 4.4.3 ")


def test_the_deadline_of_the_filter_holds_whatever_the_time_out() -> None:
    with DNSServer(broken(REVERSE, drop=True)) as dead:
        flags = verifying(dead, "--timeout", "60s", "--deadline", "30ms", "--on-error", "tempfail")
        with Conversation(Fcrdns, *flags) as smtpd:
            said = come(smtpd, **UNNAMED, address="192.0.2.9")
            assert said.reply.startswith("421 4.")
            assert ' error="not done after 0.03 s"' in smtpd.log[-1]


def test_a_failure_is_not_kept_for_the_session() -> None:
    with DNSServer(broken(REVERSE, servfail=True)) as server:
        flags = verifying(server, "--on-error", "tempfail")
        with Conversation(Fcrdns, *flags, "--phase", "mail-from") as smtpd:
            there = smtpd.connect(**UNNAMED, address="192.0.2.9")
            there.ehlo()
            assert there.mail_from("bob@example.net").reply.startswith("451 ")
            policy = smtpd.filters[0]
            policy.dns._cache.clear()  # type: ignore[attr-defined]  # a second has passed
            server.zone = GOOD
            assert there.mail_from("bob@example.net").verb == "proceed"


# -- the executable ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--nameserver", "192.0.2.53"), "--nameserver requires --verify"),
        (("--verify", "--nameserver", "ns.example.org"),
         "--nameserver: name server: 'ns.example.org' is not an IP address"),
        (("--verify", "--nameserver", "192.0.2.53:x"), "--nameserver: expected a port"),
        (("--require", "helo"), '--require: invalid choice "helo"'),
        (("--action", "tempfail"), '--action: invalid choice "tempfail"'),
        (("--phase", "data"), '--phase: invalid choice "data"'),
        (("--timeout", "0"), "--timeout: must be at least"),
        (("--reply", "go away"), "--reply: a reply is a 4xx or 5xx code"),
        (("--reply", "550", "5.7.25", "no"),
         '--reply: a code without a text, "550": quote the whole reply'),
        (("--exempt", "local, authenticated"),
         "--exempt: each word needs its own flag: --exempt local --exempt authenticated"),
        (("--exempt", "socket authenticated"),
         "--exempt: each word needs its own flag: --exempt socket --exempt authenticated"),
        (("--reply", ""), "--reply: a reply is a 4xx or 5xx code"),
        (("--reply", "550 4.7.25 x"), "--reply: the codes 550 and 4.7.25 contradict each other"),
        (("--reply", "450 5.7.25"), "--reply: the codes 450 and 5.7.25 contradict each other"),
        (("--reply", "550 2.0.0 x"), "--reply: the codes 550 and 2.0.0 contradict each other"),
        (("--deadline", "1d"), '--deadline: must be at most 5m, not "1d"'),
        (("--action", "junk", "--action=reject"),
         '--action: given twice with different values, "junk" and "reject"; it takes one'),
        (("--allow", "file:/nonexistent"), "--allow: /nonexistent: No such file or directory"),
        (("--allow", "192.0.2.0/33"), "--allow: "),
        (("--verfy",), 'unknown flag --verfy, did you mean "--verify"?'),
    ],
)  # fmt: skip
def test_bad_flags_are_one_line(flags: tuple[str, ...], expected: str) -> None:
    assert expected in complaint("fcrdns", *flags)


@pytest.mark.parametrize("words", [("local", "authenticated"), ("local",), ("192.0.2.0/24",)])
def test_what_is_exempt_by_default_may_be_written_out(words: tuple[str, ...]) -> None:
    flags = [flag for word in words for flag in ("--exempt", word)]
    with Conversation(Fcrdns, *flags) as smtpd:
        assert smtpd.phases == {"connect"}


@pytest.mark.parametrize("action", ["junk", "reject", "disconnect"])
def test_a_reply_that_nobody_is_given_is_said_at_the_start(action: str) -> None:
    with Conversation(Fcrdns, "--action", action, "--reply", "550 5.7.25 no") as smtpd:
        said = "fcrdns --reply has no effect with --action junk"
        assert smtpd.log == ([said] if action == "junk" else [])


def test_help_has_flags_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Default: --exempt local --exempt authenticated." in text
    assert "--nameserver ADDRESS[:PORT] " in text


def test_the_executable_answers_smtpd() -> None:
    clients = [
        ("<unknown>|fail|192.0.2.5:1", "connect", "<unknown>|192.0.2.5"),
        ("a.example|pass|192.0.2.9:1", "connect", "a.example|192.0.2.9"),
    ]
    answers, log = serve("fcrdns", "--action", "reject", clients=clients)
    refusal = "disconnect|421 4.7.25 Your IP address has no reverse DNS name"
    assert answers == [answered(0, refusal), answered(1, "proceed")]
    assert 'reason="no reverse name"' in log


def test_the_executable_verifies(server: DNSServer) -> None:
    clients = [
        ("<unknown>|fail|192.0.2.5:1", "connect", "<unknown>|192.0.2.5"),
        ("b.example|fail|[2001:db8::9]:1", "connect", "b.example|[2001:db8::9]"),
    ]
    answers, log = serve("fcrdns", *verifying(server), clients=clients)
    refusal = "disconnect|554 5.7.25 Your IP address has no reverse DNS name"
    assert answers == [answered(0, refusal), answered(1, "proceed")]
    assert 'reason="no reverse name"' in log


def test_without_verification_nothing_is_loaded_for_it() -> None:
    loaded = loaded_to_set_up(Fcrdns)
    assert not loaded & {
        "asyncio",
        "dns",
        "socket",
        "ipaddress",
        "smtpd_filters.lookups.dns.transport",
    }


@pytest.mark.parametrize("verify", [False, True])
def test_the_chain_runs_asyncio_only_to_verify(*, verify: bool) -> None:
    settings = Fcrdns.Options(verify=verify, nameserver=(("127.0.0.1", 9),) if verify else ())
    policy = Fcrdns(settings)
    set_up(policy, Log())
    assert policy.name == "fcrdns"
    assert Chain([(policy, "proceed", 30.0)], Log()).waits is verify


def test_the_resolver_of_the_system_is_asked_unless_told_otherwise() -> None:
    with Conversation(Fcrdns, "--verify") as smtpd:
        assert come(smtpd, **NAMED).verb == "proceed"
