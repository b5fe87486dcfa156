from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.authentication.dkim.arithmetic import Dkimpy
from smtpd_filters.authentication.results import parse
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.auth import Auth, evidence
from smtpd_filters.scoring.rules import Rules, RuleSettings
from smtpd_filters.testing import Conversation, DNSServer
from tests.authentication.test_arc import sealed
from tests.effort import brief
from tests.filters.auth.mail import FAILS, MESSAGE, PASSES, SPF, of, send, signed_by, zone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing import Delivery

OWN = "mx.example.org"
FIELD = "Authentication-Results"


@pytest.fixture(scope="module")
def server() -> Iterator[DNSServer]:
    with DNSServer(zone()) as running:
        yield running


def talk(server: DNSServer, *flags: str, kind: type[Auth] = Auth, **options: Any) -> Conversation:
    return Conversation(kind, *flags, nameserver=(server.address, server.port), **options)


def sent(
    server: DNSServer,
    *flags: str,
    content: bytes = MESSAGE,
    sender: str = "ann@example.org",
    address: str = PASSES,
) -> Delivery:
    with talk(server, *flags) as smtpd:
        return send(smtpd, content, sender, address)


def stated(delivery: Delivery) -> dict[str, str]:
    """Return the results in our field: by method, and for SPF by method and property."""
    (value,) = delivery.headers.get_all(FIELD)
    content = parse(value)
    assert content is not None
    assert content.authserv_id == OWN
    found = {}
    for each in content.results:
        name = each.method
        if name == "spf":
            name = each.properties[0][0]
        words = [each.result, *(value for key, value in each.properties if key != name)]
        found[name] = " ".join(word for word in words if len(word) < 40)
    return found


def reasons(smtpd: Conversation) -> list[str]:
    return [match[1] for line in smtpd.log if (match := re.search('reason="([^"]*)"', line))]


# -- the results -----------------------------------------------------------------------------


def test_a_message_that_passes_everything(server: DNSServer) -> None:
    with talk(server) as smtpd:
        delivery = send(smtpd, signed_by("example.org"))
        assert delivery.verb == "proceed"
        assert smtpd.log == []
    found = stated(delivery)
    b = found.pop("dkim")
    assert b.startswith("pass example.org @example.org sel rsa-sha256 ")
    assert len(b.rpartition(" ")[2]) >= 8
    assert found == {
        "iprev": "pass 192.0.2.1",
        "smtp.helo": "pass",
        "smtp.mailfrom": "pass",
        "dmarc": "pass example.org none",
    }
    assert delivery.content[0] == b"Authentication-Results: mx.example.org;"
    assert delivery.content[1] == b"\tiprev=pass policy.iprev=192.0.2.1;"
    assert delivery.content[2] == b"\tspf=pass smtp.helo=mail.example.com;"
    assert delivery.content[3] == b"\tspf=pass smtp.mailfrom=example.org;"


@pytest.mark.parametrize(
    ("content", "sender", "address", "expected"),
    [
        (MESSAGE, "ann@example.org", FAILS,
         {"smtp.mailfrom": "fail", "dkim": "none", "dmarc": "fail example.org reject"}),
        (MESSAGE, "bounce@news.example.org", PASSES, {"smtp.mailfrom": "softfail"}),
        (MESSAGE, "bounce@nowhere.example", PASSES,
         {"smtp.mailfrom": "none", "dmarc": "fail example.org reject"}),
        (of("x@example.com"), "ann@example.org", PASSES,
         {"smtp.mailfrom": "pass", "dmarc": "fail example.com quarantine"}),
        (of("x@sub.example.com"), "ann@example.com", PASSES,
         {"dmarc": "pass sub.example.com none"}),
        (of("x@testing.example"), "ann@example.com", PASSES,
         {"dmarc": "fail testing.example quarantine"}),
        (of("x@nowhere.example"), "ann@example.com", PASSES, {"dmarc": "none nowhere.example"}),
        (of("x@broken.example"), "a@broken.example", PASSES,
         {"smtp.mailfrom": "temperror", "dmarc": "temperror broken.example"}),
        (signed_by("list.example"), "a@list.example", FAILS,
         {"dkim": "pass", "dmarc": "fail example.org reject"}),
        (signed_by("example.org").replace(b"hello", b"HELLO"), "ann@example.com", FAILS,
         {"dkim": "fail", "dmarc": "fail example.org reject"}),
        (signed_by("broken.example"), "ann@example.com", FAILS,
         {"dkim": "temperror", "dmarc": "fail example.org reject"}),
        (MESSAGE.replace(b"From", b"X-From"), "ann@example.org", PASSES, {"dmarc": "permerror"}),
        (b"From: x@example.com\r\n" + MESSAGE, "ann@example.org", PASSES, {"dmarc": "permerror"}),
        (of("undisclosed:;"), "ann@example.org", PASSES, {"dmarc": "permerror"}),
        (of(", ".join(f"a@{n}.example" for n in range(5))), "ann@example.org", PASSES,
         {"dmarc": "permerror"}),
        (of("root"), "ann@example.org", PASSES, {"dmarc": "pass mx.example.org none"}),
        (of("x@B\u00fcCHER.example"), "ann@example.org", PASSES,
         {"dmarc": "none xn--bcher-kva.example"}),
    ],
)  # fmt: skip
def test_results(
    server: DNSServer, content: bytes, sender: str, address: str, expected: dict[str, str]
) -> None:
    delivery = sent(server, content=content, sender=sender, address=address)
    assert delivery.verb == "proceed"
    found = stated(delivery)
    for name, result in expected.items():
        assert found[name] == result or found[name].startswith(f"{result} ")


def test_a_bounce_is_judged_by_the_greeting(server: DNSServer) -> None:
    delivery = sent(server, content=of("x@example.com"), sender="")
    found = stated(delivery)
    assert found["smtp.helo"] == "pass"
    assert "smtp.mailfrom" not in found
    assert found["dmarc"] == "pass example.com none"


def test_a_greeting_never_stands_in_for_the_sender(server: DNSServer) -> None:
    """CVE-2019-20790: SPF of HELO passes, that of MAIL FROM doesn't."""
    delivery = sent(server, content=of("x@example.com"), sender="a@nowhere.example")
    found = stated(delivery)
    assert (found["smtp.helo"], found["dmarc"]) == ("pass", "fail example.com quarantine")


def test_several_authors(server: DNSServer) -> None:
    with talk(server, "--dmarc", "honour", "--dmarc-reject", "reject") as smtpd:
        delivery = send(smtpd, of("a@example.com, b@example.org"), "ann@example.com")
        assert delivery.reply.startswith("550 5.7.26 ")
        assert "dmarc=fail example.org policy=reject" in smtpd.log[0]


def test_what_a_sender_writes_is_quoted(server: DNSServer) -> None:
    delivery = sent(
        server,
        content=of('"a;dmarc=pass"@evil.example'),
        sender="a;dmarc=pass@evil.example;dkim=pass",
    )
    found = stated(delivery)
    assert found["dkim"] == "none"
    assert found["dmarc"] == "none evil.example"


def test_a_clients_reverse_name(server: DNSServer) -> None:
    for fcrdns, result in (("fail", "fail"), ("error", "temperror")):
        with talk(server) as smtpd:
            client = smtpd.connect(fcrdns=fcrdns)
            client.ehlo("mail.example.com")
            assert stated(send(smtpd, client=client))["iprev"] == f"{result} 192.0.2.1"


def test_received_spf(server: DNSServer) -> None:
    delivery = sent(server, "--received-spf", sender='a;b"@example.org', address=FAILS)
    assert delivery.headers.get("Received-SPF") == (
        'fail client-ip=203.0.113.9;\tenvelope-from="a;b\\"@example.org";\thelo=mail.example.com;'
        "\tidentity=mailfrom;\tmechanism=-all;\treceiver=mx.example.org"
    )
    delivery = sent(server, "--received-spf", sender="")
    assert "identity=helo;" in delivery.headers.get("Received-SPF", "")


def test_results_for_a_sealing_filter(server: DNSServer) -> None:
    delivery = sent(server, "-A", content=signed_by("example.org"))
    assert FIELD not in delivery.headers
    value = delivery.headers.get("ARC-Authentication-Results", "")
    assert value.startswith("i=1; mx.example.org;")
    content = parse(value.removeprefix("i=1; "))
    assert content is not None
    assert ("dmarc", "pass") in [(each.method, each.result) for each in content.results]


def test_a_name_of_our_own(server: DNSServer) -> None:
    flags = ("--authserv-id", "mail.example/1")
    content = b"Authentication-Results: MAIL.example; dmarc=pass\r\n" + MESSAGE
    (value,) = sent(server, *flags, content=content).headers.get_all(FIELD)
    assert value.startswith('"mail.example/1";')


# -- forged fields ---------------------------------------------------------------------------

FORGED = (
    b"Authentication-Results: mx.example.org; dmarc=pass header.from=example.org\r\n"
    b'AUTHENTICATION-RESULTS : (a)\r\n "MX.example.org" 1; dkim=pass\r\n'
    b"Authentication-Results: other.example; spf=pass\r\n"
)


def test_forged_fields_are_removed(server: DNSServer) -> None:
    with talk(server) as smtpd:
        delivery = send(smtpd, FORGED + MESSAGE)
        ours, other = delivery.headers.get_all(FIELD)
        assert ours.startswith("mx.example.org;\tiprev=pass")
        assert other == "other.example; spf=pass"
        assert reasons(smtpd) == ["removed 2 forged Authentication-Results"]


def test_a_signature_may_cover_a_forged_field(server: DNSServer) -> None:
    content = FORGED.partition(b"AUTH")[0] + MESSAGE
    template = (
        "v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel; "
        "h=from:authentication-results; bh={bh}; b={b}"
    )
    from tests.authentication.signing import signed

    delivery = sent(server, content=signed(content, template))
    assert stated(delivery)["dkim"].startswith("pass")


def test_scrub_only() -> None:
    with Conversation(Auth, "--scrub-only") as smtpd:
        assert smtpd.phases == {"data-line", "commit"}
        delivery = send(smtpd, FORGED + MESSAGE)
        assert delivery.headers.get_all(FIELD) == ["other.example; spf=pass"]
        assert reasons(smtpd) == ["removed 2 forged Authentication-Results"]
        assert send(smtpd).unchanged
        local = smtpd.connect(local=True)
        local.ehlo()
        assert send(smtpd, FORGED + MESSAGE, client=local).unchanged
        user = smtpd.connect()
        user.ehlo()
        user.auth("ann")
        delivery = send(smtpd, FORGED + MESSAGE, client=user)
        assert delivery.headers.get_all(FIELD) == ["other.example; spf=pass"]


@pytest.mark.parametrize(
    "flags", [["-A"], ["--dmarc", "honour"], ["--nameserver", "127.0.0.1"], ["--timeout", "1"]]
)
def test_options_without_effect(flags: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--[a-z-]+ has no effect with --scrub-only"):
        Conversation(Auth, "--scrub-only", *flags)


@pytest.mark.parametrize(
    "name", [";", "--", '"."', " ", "mx example", "mx\ndkim=pass", "mx;dkim=pass", "a(b)"]
)
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--authserv-id .*: expected a name"):
        Conversation(Auth, f"--authserv-id={name}", "--scrub-only")


# -- exempt clients --------------------------------------------------------------------------


def test_local_clients_are_not_checked(server: DNSServer) -> None:
    with talk(server) as smtpd:
        client = smtpd.connect(local=True)
        client.ehlo("mail.example.com")
        assert send(smtpd, FORGED + MESSAGE, client=client).unchanged


def test_authenticated_clients_are_stated(server: DNSServer) -> None:
    with talk(server) as smtpd:
        client = smtpd.connect(address=FAILS)
        client.ehlo("mail.example.com")
        client.auth("ann b")
        delivery = send(smtpd, FORGED + MESSAGE, client=client)
        assert delivery.headers.get_all(FIELD) == [
            'mx.example.org;\tauth=pass smtp.auth="ann b"',
            "other.example; spf=pass",
        ]


def test_a_client_without_a_known_address(server: DNSServer) -> None:
    with talk(server) as smtpd:
        client = smtpd.connect(reported=False)
        client.ehlo("mail.example.com")
        found = stated(send(smtpd, signed_by("example.org"), client=client))
        assert found.keys() == {"smtp.mailfrom", "dkim", "dmarc"}
        assert found["smtp.mailfrom"].startswith("temperror")
        assert found["dmarc"] == "pass example.org none"


@pytest.mark.parametrize("flag", ["--received-spf", "-A"])
def test_a_chain_whose_key_can_not_be_looked_up(flag: str) -> None:
    names = zone() | {"sel._domainkey.example.org": {"servfail": True}}
    with DNSServer(names) as own, talk(own, flag) as smtpd:
        headers = send(smtpd, sealed(MESSAGE)).headers
    # A filter that seals would seal what has failed as failed for good; others know no other word.
    field, result = (FIELD, "temperror") if flag != "-A" else (f"ARC-{FIELD}", "fail")
    assert f"arc={result} " in headers.get_all(field)[0]


# -- actions ---------------------------------------------------------------------------------

BAD_FROM = MESSAGE.replace(b"From", b"X-From")
FORGED_SIGNATURE = signed_by("example.org").replace(b"hello", b"HELLO")


@pytest.mark.parametrize(
    ("flag", "content", "sender", "codes"),
    [
        ("--spf-fail", MESSAGE, "ann@example.org", "7.23"),
        ("--spf-softfail", MESSAGE, "ann@news.example.org", "7.23"),
        ("--spf-helo-fail", MESSAGE, "ann@nowhere.example", "7.23"),
        ("--dkim-fail", FORGED_SIGNATURE, "ann@example.org", "7.20"),
        ("--dmarc-quarantine", of("x@example.com"), "ann@nowhere.example", "7.26"),
        ("--dmarc-reject", MESSAGE, "ann@nowhere.example", "7.26"),
        ("--bad-from", BAD_FROM, "ann@example.org", "7.1"),
    ],
)
def test_actions(server: DNSServer, flag: str, content: bytes, sender: str, codes: str) -> None:
    for action, verb, code in (
        ("ignore", "proceed", ""),
        ("log", "proceed", ""),
        ("junk", "proceed", ""),
        ("tempfail", "reject", f"451 4.{codes} "),
        ("reject", "reject", f"550 5.{codes} "),
    ):
        with talk(server, flag, action) as smtpd:
            delivery = send(smtpd, content, sender, FAILS)
            assert delivery.verb == verb
            assert delivery.reply.startswith(code)
            assert (delivery.headers.get("X-Spam") == "Yes") is (action == "junk")


def test_the_greeting(server: DNSServer) -> None:
    with talk(server, "--spf-helo-fail", "reject") as smtpd:
        refused = send(smtpd, MESSAGE, "ann@nowhere.example", FAILS)
        assert refused.reply == "550 5.7.23 SPF: this client may not greet as mail.example.com"
        assert "spf=fail mail.example.com of HELO" in reasons(smtpd)[-1]
        assert send(smtpd, MESSAGE, "ann@nowhere.example", PASSES).verb == "proceed"
        # With the null sender it is the sender.
        assert send(smtpd, MESSAGE, "", FAILS).verb == "proceed"
    flags = ("--spf-helo-fail", "reject", "--on-error", "tempfail")
    with talk(server, *flags) as smtpd:
        client = smtpd.connect(address=FAILS)
        client.ehlo("broken.example")
        delayed = send(smtpd, MESSAGE, "ann@nowhere.example", client=client)
        assert delayed.reply.startswith("451 4.7.24 ")
        assert any("spf: " in line and " of HELO" in line for line in smtpd.log)


@pytest.mark.parametrize("sender", ["boss", '"boss"', '"boss@nowhere.example"'])
def test_a_sender_without_a_domain_has_that_of_the_server(server: DNSServer, sender: str) -> None:
    delivery = sent(server, "--spf-fail=reject", sender=sender, address=FAILS)
    assert delivery.reply.startswith("550 5.7.23 SPF: this client may not send mail of mx.example.")
    assert sent(server, "--spf-fail=reject", sender=sender).verb == "proceed"


@pytest.mark.parametrize(
    ("flags", "author", "result"),
    [
        ([], "x@example.com", "proceed"),
        ([], "x@example.org", "proceed"),
        (["--dmarc", "honour"], "x@example.com", "junk"),
        (["--dmarc", "honour"], "x@example.org", "junk"),
        (["--dmarc", "honour"], "x@nowhere.example", "proceed"),
        (["--dmarc", "honour", "--dmarc-reject", "reject"], "x@example.org", "reject"),
        (["--dmarc", "honour", "--dmarc-reject", "reject"], "x@testing.example", "junk"),
        (["--dmarc", "honour", "--dmarc-quarantine", "log"], "x@example.com", "proceed"),
        (["--dmarc", "honour", "--except-domains", "example.org"], "x@example.org", "proceed"),
    ],
)
def test_the_policies_of_dmarc(
    server: DNSServer, flags: list[str], author: str, result: str
) -> None:
    delivery = sent(server, *flags, content=of(author), sender="a@nowhere.example")
    spam = delivery.headers.get("X-Spam") == "Yes" if delivery.content else False
    assert ("junk" if spam else delivery.verb) == result


def test_the_reply_of_dmarc(server: DNSServer) -> None:
    delivery = sent(server, "--dmarc-reject", "reject", sender="a@nowhere.example")
    expected = "550 5.7.26 Not authenticated, refused per DMARC policy of example.org"
    assert delivery.reply == expected


@pytest.mark.parametrize(
    ("flags", "content", "code"),
    [
        (["--spf-fail", "junk"], MESSAGE, "451 4.7.24"),
        (["--dkim-fail", "reject"], signed_by("broken.example"), "451 4.4.3"),
        (["--dmarc", "honour"], of("x@broken.example"), "451 4.4.3"),
        ([], of("x@broken.example"), ""),
        (["--bad-from", "reject"], of("x@broken.example"), ""),
    ],
)
def test_failed_look_ups(server: DNSServer, flags: list[str], content: bytes, code: str) -> None:
    for on_error in ("proceed", "junk", "tempfail"):
        with talk(server, *flags, "--on-error", on_error) as smtpd:
            delivery = send(smtpd, content, "a@broken.example")
            refused = bool(code) and on_error == "tempfail"
            assert delivery.verb == ("reject" if refused else "proceed")
            assert delivery.reply.startswith(code if refused else "")
            marked = bool(code) and on_error == "junk"
            assert (delivery.headers.get("X-Spam") == "Yes") is marked


#: How the servers of a domain fail: SPF, the key and the policy alike.
FAULTS: dict[str, dict[str, object]] = {
    "dead": {"drop": True},
    "slow": {"delay": 600},
    "refused": {"refused": True},
    "malformed": {"malformed": True},
    "bytes behind the answer": {"trailing": True},
    "wrong id": {"wrong-id": True},
    "wrong question": {"wrong-name": True},
    "another name's records": {"wrong-owner": True},
    "TCP only, which is closed": {"truncate": True, "no-tcp": True},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_dns_that_fails_or_lies_is_no_evidence(fault: str) -> None:
    names = zone()
    for owner in ("f.example", "_dmarc.f.example", "sel._domainkey.f.example"):
        # What a lie would be believed for.
        names[owner] = {"TXT": SPF if owner == "f.example" else "v=DMARC1; p=reject",
                        **FAULTS[fault]}  # fmt: skip
    content = signed_by("f.example", of("x@f.example"))
    with DNSServer(names) as own, talk(own, "--dmarc", "honour", "--timeout", "50ms") as smtpd:
        client = smtpd.connect(address=PASSES)
        client.ehlo("mail.example.com")
        found = stated(send(smtpd, content, "a@f.example", client=client))
    assert found["smtp.mailfrom"].startswith("temperror")
    assert found["dkim"].startswith("temperror f.example")
    assert found["dmarc"].startswith("temperror f.example")


@pytest.mark.parametrize("behaviour", ["spoof", "truncate", "flap"])
def test_a_dns_that_can_be_read_all_the_same(behaviour: str) -> None:
    names = zone()
    for owner in ("example.org", "_dmarc.example.org", "sel._domainkey.example.org"):
        names[owner][behaviour] = True
    with DNSServer(names) as own, talk(own, "--timeout", f"{brief(0.5)}s") as smtpd:
        client = smtpd.connect(address=PASSES)
        client.ehlo("mail.example.com")
        found = stated(send(smtpd, signed_by("example.org"), client=client))
    assert (found["smtp.mailfrom"], found["dmarc"]) == ("pass", "pass example.org none")
    assert found["dkim"].startswith("pass")


class Hasty(Auth):
    """The results get a small part of the deadline, so that the rest suffices on any machine."""

    name = "auth"
    share = 0.001


class Late(Auth):
    """The time suffices for answers of the name server, but not for one that is silent."""

    name = "auth"
    share = 0.15


def test_results_that_are_not_there_in_time(server: DNSServer) -> None:
    with talk(server, "--deadline", "10", "--timeout", "5", kind=Hasty) as smtpd:
        delivery = send(smtpd, of("x@silent.example"), "a@silent.example")
        found = stated(delivery)
        assert found["smtp.mailfrom"].startswith("temperror")
        assert found["dmarc"].startswith("temperror silent.example")


def test_a_slow_key_says_nothing_about_other_signatures(server: DNSServer) -> None:
    with talk(
        server, "--deadline", "10", "--timeout", "5", "--dmarc", "honour", kind=Late
    ) as smtpd:
        twice = signed_by("silent.example", signed_by("example.org"))
        delivery = send(smtpd, twice, "a@forwarder.example", FAILS)
        assert stated(delivery)["dmarc"].startswith("pass example.org")
        results = parse(delivery.headers.get(FIELD, ""))
        assert results is not None
        signatures = [each for each in results.results if each.method == "dkim"]
        assert [(each.result, each.properties[0][1]) for each in signatures] == [
            ("pass", "example.org"),
            ("temperror", "silent.example"),
        ]


def test_a_key_of_the_author_that_is_not_there_in_time(server: DNSServer) -> None:
    flags = ("--deadline", "10", "--timeout", "5", "--dmarc-reject", "reject")
    content = signed_by("slow.example", of("x@slow.example"))
    with talk(server, *flags, kind=Late) as smtpd:
        delivery = send(smtpd, content, "a@forwarder.example", FAILS)
        assert delivery.reply.startswith("451 4.4.3 DMARC of slow.example ")
    with talk(server, *flags, "--dmarc-error", "log", kind=Late) as smtpd:
        delivery = send(smtpd, content, "a@forwarder.example", FAILS)
        found = stated(delivery)
        assert found["dkim"].startswith("temperror slow.example")
        assert found["dmarc"].startswith("temperror slow.example")
    # A slow key of another domain does not excuse the author's lack of one.
    content = signed_by("silent.example", of("x@slow.example"))
    with talk(server, *flags, kind=Late) as smtpd:
        assert send(smtpd, content, "a@forwarder.example", FAILS).reply.startswith("550 5.7.26 ")


@pytest.mark.parametrize(
    ("author", "sender", "result"),
    [
        # The record of the domain above is known.
        ("a.silent.bank.example", "a@example.org", "temperror a.silent.bank.example none"),
        # The sender is of the author's own domain, which needs no look-up that is late.
        ("bank.example", "a@bank.example", "pass bank.example none"),
    ],
)
def test_what_is_known_in_time_counts(author: str, sender: str, result: str) -> None:
    names: dict[str, dict[str, object]] = {
        "bank.example": {"TXT": SPF},
        "_dmarc.bank.example": {"TXT": "v=DMARC1; p=reject"},
        "_dmarc.silent.bank.example": {"drop": True},
        "sel._domainkey.silent.bank.example": zone()["sel._domainkey.example.org"],
    }
    content = signed_by("silent.bank.example", of(f"x@{author}"))
    flags = ("--deadline", "10", "--timeout", "5", "--dmarc-reject", "reject")
    with DNSServer(names) as own:
        with talk(own, *flags, "--dmarc-error", "log", kind=Late) as smtpd:
            assert stated(send(smtpd, content, sender))["dmarc"] == result
        with talk(own, *flags, kind=Late) as smtpd:
            refused = "451 4.4.3 " if result.startswith("temperror") else ""
            assert send(smtpd, of(f"x@{author}"), sender).reply.startswith(refused)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_sender_about_which_smtpd_did_not_ask(
    server: DNSServer,
    monkeypatch: pytest.MonkeyPatch,
    earlier: bool,  # noqa: FBT001  # a column
) -> None:
    # A filter of smtpd.conf marks or rewrites it at mail-from: no other filter is asked.
    with talk(server, "--spf-fail", "reject", "--received-spf") as smtpd:
        client = smtpd.connect(address=FAILS)
        client.ehlo("mail.example.net")
        if earlier:
            send(smtpd, sender="a@nowhere.example", client=client)
        proceed = client.noop()
        with monkeypatch.context() as patch:
            patch.setattr(client, "_ask", lambda *_: proceed)
            client.mail_from("ann@example.org")
        client.rcpt_to("bob@example.net")
        assert client.message(MESSAGE).reply.startswith("550 5.7.23 ")


def test_a_session_that_ends_before_its_results(server: DNSServer) -> None:
    with talk(server) as smtpd:
        for ends in ("quit", "disconnect"):
            client = smtpd.connect()
            client.ehlo("silent.example")
            client.mail_from("a@silent.example")
            client.rset()
            client.mail_from("b@silent.example")
            getattr(client, ends)()
        client = smtpd.connect()
        client.ehlo("silent.example")
        client.tls()
        client.ehlo("mail.example.com")
        assert stated(send(smtpd, client=client))["smtp.helo"] == "pass"


def test_several_messages_of_a_session(server: DNSServer) -> None:
    with talk(server) as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.com")
        for sender, result in (("a@example.org", "pass"), ("a@news.example.org", "softfail")):
            found = stated(send(smtpd, sender=sender, client=client))
            assert found["smtp.mailfrom"] == result


def test_look_ups_begin_at_the_greeting_and_the_sender() -> None:
    with DNSServer(zone()) as server, talk(server) as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.com")
        client.mail_from("ann@example.org")
        client.rcpt_to("bob@example.net")
        before = {name for name, _ in server.queries}
        assert {"mail.example.com", "example.org"} <= before
        client.message(MESSAGE)
        assert server.queries.count(("example.org", "TXT")) == 1


# -- points ----------------------------------------------------------------------------------


def test_points_in_a_chain(server: DNSServer) -> None:
    flags = ("--spf-fail", "points=2.5", "--dmarc-reject", "points=3", "--bad-from", "points=0")
    rules = Rules(RuleSettings(junk_at=5.5, score_header=True))
    with talk(server, *flags, rules=rules) as smtpd:
        assert smtpd.filters[0].registration.points == (0.0, 5.5)
        client = smtpd.connect(address=FAILS)
        client.ehlo("mail.example.com")
        delivery = send(smtpd, client=client)
        assert delivery.headers.get("X-Smtpd-Filters-Score") == "5.5 (junk-at 5.5) auth=5.5"
        assert delivery.headers.get("X-Spam") == "Yes"
        # SPF alone.
        second = send(smtpd, of("x@nowhere.example"), client=client)
        assert second.headers.get("X-Smtpd-Filters-Score") == "2.5 (junk-at 5.5) auth=2.5"
        assert second.headers.get_all("X-Spam") == []
        # In the field the result is the same.
        assert "dmarc=none" in str(second.headers.get(FIELD))


def test_without_a_library_for_ed25519_the_log_says_so(
    server: DNSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nacl", None)
    monkeypatch.setattr(evidence, "arithmetic", Dkimpy)
    with talk(server) as smtpd:
        line = (
            "auth signatures of Ed25519 are not verified "
            'reason="Ed25519 needs the package cryptography or PyNaCl"'
        )
        assert smtpd.log == [line]
        assert send(smtpd).verb == "proceed"
        assert smtpd.log == [line]


def test_a_failed_look_up_is_no_reason_to_refuse_for_good() -> None:
    with pytest.raises(ConfigError, match="--dmarc-error reject: a failed look-up is temporary"):
        Conversation(Auth, "--dmarc-error", "reject")


@pytest.mark.parametrize("text", ["points", "points=", "points=-1", "points=x", "point=1", "drop"])
def test_invalid_points(text: str) -> None:
    with pytest.raises(ConfigError, match="--spf-fail"):
        Conversation(Auth, "--spf-fail", text)


# -- forged fields ---------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("-r",), ("-r", "--scrub-only")])
def test_forged_fields_can_be_refused(server: DNSServer, flags: tuple[str, ...]) -> None:
    forged = b"Authentication-Results: mx.example.org; dkim=pass\r\n" + MESSAGE
    with talk(server, *flags) as smtpd:
        client = smtpd.connect(address=PASSES)
        client.ehlo("mail.example.com")
        assert send(smtpd, client=client).verb == "proceed"
        delivery = send(smtpd, forged, client=client)
        assert delivery.reply == (
            "550 5.7.1 Authentication-Results field in the name of this server"
        )
        client.auth("ann", "secret")
        delivery = send(smtpd, forged, client=client)
        assert delivery.verb == "proceed"
        assert b"dkim=pass" not in b"\n".join(delivery.content)
    assert reasons(smtpd)[0] == "1 forged Authentication-Results"


@pytest.mark.parametrize("flags", [(), ("--scrub-only",)])
def test_a_forged_field_beyond_what_is_read_of_a_header_is_body(
    server: DNSServer, flags: tuple[str, ...]
) -> None:
    forged = f"{FIELD}: {OWN}; dmarc=pass\r\n".encode()
    content = b"A:\r\n" * 17_000 + forged + MESSAGE
    with talk(server, *flags) as smtpd:
        delivery = send(smtpd, content)
        assert len(delivery.headers) > 10_000
        assert len(delivery.headers.get_all(FIELD)) == (0 if flags else 1)
        assert forged.rstrip() in delivery.body.splitlines()


@pytest.mark.parametrize("flags", [("-s",), ("-s", "--scrub-only")])
def test_fields_of_other_scanners_can_be_removed(server: DNSServer, flags: tuple[str, ...]) -> None:
    spam = b"X-Spam: No\r\nx-spam-status:\r\n No\r\nX-Spamd-Bar: +\r\nX-Spa: kept\r\n"
    delivery = sent(server, *flags, content=spam + MESSAGE)
    names = [name.lower() for name in delivery.headers.names()]
    assert "x-spa" in names
    assert not any(name.startswith("x-spam") for name in names)
    kept = sent(server, *flags[1:], content=spam + MESSAGE)
    assert kept.headers.get("X-Spam") == "No"


@pytest.mark.parametrize(
    "field",
    [
        b"X-SPAM-Flag \t: NO",
        b"X-Spam-Flag\r\n : NO",
        b"X-Spam\x0c-Flag: NO",
        b"\xef\xbb\xbfX-Spam: NO",
        b"X-Sp\xe4am\xa0: NO\r\n folded",
        b"X-Odd: a\rX-Spam-Flag : NO",
    ],
)
def test_disguised_fields_of_other_scanners_are_removed(server: DNSServer, field: bytes) -> None:
    delivery = sent(server, "-s", "--scrub-only", content=field + b"\r\n" + MESSAGE)
    lines = MESSAGE.split(b"\r\n")[:-1]
    assert list(delivery.content[-len(lines) :]) == lines
    assert b"spam" not in b"\n".join(delivery.content).lower()
