"""Tests of requests to Rspamd: for the real smtpd's sessions, as the real Rspamd parses them."""

from __future__ import annotations

import base64
import http.client
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from smtpd_filters.filters.rspamd.request import Facts, fields
from smtpd_filters.session import Session, Transaction
from smtpd_filters.testing.rspamd.daemon import Rspamd, unavailable
from smtpd_filters.testing.rspamd.stub import RspamdStub
from smtpd_filters.testing.server import Lab, filter_command
from smtpd_filters.testing.server import unavailable as no_lab
from smtpd_filters.testing.server.lab import HOSTNAME
from tests.e2e.conftest import Start
from tests.e2e.rspamd_set_up import stub_in
from tests.e2e.sending import (
    ALICE,
    BOB,
    GOOD,
    GOOD6,
    LIAR,
    MESSAGE,
    NAMELESS,
    SENDER,
    ZONE,
    attempt,
    is_release,
    local,
    transact,
)
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing.rspamd.stub import Request
    from smtpd_filters.testing.server import Smtpd


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network of the module's servers."""
    need(no_lab())
    with Lab(ZONE) as made:
        yield made


@pytest.fixture
def stub(lab: Lab) -> Iterator[RspamdStub]:
    """A daemon inside the lab that says of everything that it is clean."""
    with stub_in(lab) as made:
        yield made


@pytest.fixture
def server(start: Start, lab: Lab, stub: RspamdStub) -> Smtpd:
    return start(lab=lab, filters={"rspamd": filter_command("rspamd", "-url", stub.url)})


def told(stub: RspamdStub) -> dict[str, list[str]]:
    """The values of each field of the only request."""
    [request] = stub.requests
    stub.requests.clear()
    return grouped(request)


def grouped(request: Request) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in request.headers:
        found.setdefault(name, []).append(value)
    del found["Host"]
    return found


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (GOOD, ["mail.good.example"]),
        (GOOD6, ["mail.good.example"]),
        (NAMELESS, None),
        (LIAR, None),
    ],
)
def test_a_session_of_which_little_is_known(
    server: Smtpd, stub: RspamdStub, source: str, name: list[str] | None
) -> None:
    assert attempt(server, source).code == 250
    [request] = stub.requests
    facts = told(stub)
    assert re.fullmatch("[0-9a-f]{8}", facts.pop("Queue-Id")[0])
    assert facts.pop("Content-Length") == [str(len(request.body))]
    assert facts.pop("Hostname", None) == name
    assert facts == {
        "Flags": ["milter,body_block"],
        "IP": [source],
        "Helo": ["client.example"],
        "MTA-Name": [HOSTNAME],
        "From": [f"<{SENDER}>"],
        "Rcpt": [f"<{ALICE}>"],
    }
    # As it was received, with smtpd's own field in front.
    assert request.body.startswith(b"Received: from ")
    assert request.body.endswith(b"\n" + local(MESSAGE))


def test_a_user_over_tls(server: Smtpd, stub: RspamdStub) -> None:
    assert attempt(server, user="alice", helo="EHLO laptop.example").code == 250
    facts = told(stub)
    assert facts["User"] == ["alice"]
    assert re.fullmatch(r"TLSv1\.[23]", facts["TLS-Version"][0])
    assert re.fullmatch(r"[A-Z0-9_-]+", facts["TLS-Cipher"][0])
    assert facts["Helo"] == ["laptop.example"]


def test_a_failed_authentication_sends_no_user(server: Smtpd, stub: RspamdStub) -> None:
    with server.connection(GOOD) as connection:
        connection.reply()
        connection.command("EHLO client.example")
        connection.starttls()
        connection.command("EHLO client.example")
        wrong = base64.b64encode(b"\0alice\0wrong").decode()
        refused = connection.command(f"AUTH PLAIN {wrong}")
        assert refused is not None
        assert refused.code == 535
        assert transact(connection).code == 250
    facts = told(stub)
    assert "User" not in facts
    assert "TLS-Version" in facts


def test_several_messages_in_a_session(server: Smtpd, stub: RspamdStub) -> None:
    """No fact about one message is sent with another."""
    with server.connection(GOOD) as connection:
        connection.reply()
        connection.command("EHLO client.example")
        assert transact(connection, "one@good.example", [ALICE, BOB]).code == 250
        first = told(stub)
        for command in ("MAIL FROM:<two@good.example>", f"RCPT TO:<{BOB}>", "RSET"):
            connection.command(command)
        assert transact(connection, "three@good.example", [ALICE]).code == 250
        second = told(stub)
        connection.command("MAIL FROM:<>")
        refused = connection.command("RCPT TO:<nobody@elsewhere.example>")
        assert refused is not None
        assert refused.code == 550
        connection.command("RSET")
        assert transact(connection, "", [BOB]).code == 250
        third = told(stub)
    assert (first["From"], first["Rcpt"]) == (["<one@good.example>"], [f"<{ALICE}>", f"<{BOB}>"])
    assert (second["From"], second["Rcpt"]) == (["<three@good.example>"], [f"<{ALICE}>"])
    assert (third["From"], third["Rcpt"]) == (["<>"], [f"<{BOB}>"])
    assert len({facts["Queue-Id"][0] for facts in (first, second, third)}) == 3


def test_a_session_over_the_socket(server: Smtpd, stub: RspamdStub) -> None:
    server.submit(local(MESSAGE), SENDER, ALICE)
    facts = told(stub)
    assert facts["IP"] == ["127.0.0.1"]
    assert facts["Hostname"] == ["localhost"]
    assert "User" not in facts


@pytest.mark.parametrize(
    "helo", ["HELO [192.0.2.9]", "EHLO [IPv6:2001:db8::9]", "HELO a_b.example", "HELO x"]
)
def test_a_greeting_is_sent_unchanged(server: Smtpd, stub: RspamdStub, helo: str) -> None:
    assert attempt(server, helo=helo).code == 250
    assert told(stub)["Helo"] == [helo[5:]]


@pytest.mark.parametrize(
    ("sender", "from_"),
    [
        ("b+c=d@good.example", "<b+c=d@good.example>"),
        ("a'b!#%&*/?^_~-@good.example", "<a'b!#%&*/?^_~-@good.example>"),
        ("a:b@good.example", "<b@good.example>"),  # so smtpd's envelope
        ("@relay.example:bob@good.example", "<bob@good.example>"),
        ("bob", f"<bob@{HOSTNAME}>"),
    ],
)
def test_an_address_is_sent_as_smtpd_takes_it(
    server: Smtpd, stub: RspamdStub, sender: str, from_: str
) -> None:
    assert attempt(server, sender=sender).code == 250
    assert told(stub)["From"] == [from_]


def test_an_address_that_newer_servers_refuse(server: Smtpd, stub: RspamdStub) -> None:
    sender, refuses = "$`{|}@good.example", is_release(server, 7, 9)
    assert attempt(server, sender=sender).code == (553 if refuses else 250)
    assert [grouped(each)["From"] for each in stub.requests] == [[f"<{sender}>"]] * (not refuses)
    stub.requests.clear()


# -- what the real daemon makes of it --------------------------------------------------------------

LUA = r"""
rspamd_config:register_symbol{
  name = "T_FACTS", type = "prefilter", flags = "empty,nostat", priority = 10,
  callback = function(task)
    local function addresses(list)
      local found = {}
      for _, each in ipairs(list or {}) do found[#found + 1] = each.addr end
      return found
    end
    local ip, user = task:get_from_ip(), task:get_user()
    local facts = {
      ip = ip and ip:is_valid() and tostring(ip) or "none",
      helo = task:get_helo(), hostname = task:get_hostname(), user = user,
      from = addresses(task:get_from("smtp")), rcpt = addresses(task:get_recipients("smtp")),
      queue = task:get_queue_id(),
    }
    for _, name in ipairs({ "MTA-Name", "MTA-Tag", "TLS-Cipher", "TLS-Version", "Deliver-To" }) do
      local value = task:get_request_header(name)
      if value then facts[name] = tostring(value) end
    end
    local json = require("ucl").to_format(facts, "json-compact")
    task:set_milter_reply({ add_headers = { ["X-Facts"] = json } })
  end,
}
"""
SETTINGS = 'known { id = "known"; apply { symbols = [ "T_KNOWN" ]; } }'


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Rspamd]:
    need(unavailable())
    local = {"settings.conf": SETTINGS}
    with Rspamd(zone={}, local=local, lua=LUA, redis=False) as daemon:
        yield daemon


def session(**changes: Any) -> Session:
    made = Session(b"7641df9771b4ed00")
    source = changes.pop("source", "192.0.2.1:33174").encode()
    made.apply("link-connect", (b"mail.example.com", b"pass", source, b"198.51.100.25:25"))
    made.server_name = None
    made.method, made.identity, made.tls, made.username = "EHLO", "helo.example.com", None, None
    made.tx = Transaction("1ef1c203")
    made.tx.sender = changes.pop("sender", "bob@example.net")
    made.tx.recipients = list(changes.pop("recipients", ["anna@example.org"]))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def understood(rspamd: Rspamd, of: Session, **facts: Any) -> dict[str, Any]:
    """Return the daemon's facts about a message with all these fields."""
    where = urlsplit(rspamd.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    connection.putrequest("POST", "/checkv2")
    for name, value in fields(of, Facts(**facts), "mx.example.org")[0]:
        connection.putheader(name, value.encode())
    connection.putheader("Content-Length", str(len(MESSAGE)))
    connection.endheaders(MESSAGE)
    try:
        reply = json.loads(connection.getresponse().read())
        said: dict[str, Any] = json.loads(reply["milter"]["add_headers"]["X-Facts"])
        return said
    finally:
        connection.close()


def test_the_daemon_understands_each_fact(rspamd: Rspamd) -> None:
    of = session(tls="TLSv1.3:TLS_AES_256_GCM_SHA384:256", username="anna")
    since = len(rspamd.log)
    assert understood(rspamd, of, settings_id="known", mta_tag="tag", deliver_to=True) == {
        "ip": "192.0.2.1",
        "hostname": "mail.example.com",
        "helo": "helo.example.com",
        "user": "anna",
        "from": ["bob@example.net"],
        "rcpt": ["anna@example.org"],
        "queue": "1ef1c203",
        "MTA-Name": "mx.example.org",
        "MTA-Tag": "tag",
        "TLS-Cipher": "TLS_AES_256_GCM_SHA384",
        "TLS-Version": "TLSv1.3",
        "Deliver-To": "anna@example.org",
    }
    rspamd.wait_for(r"task_write_log.*settings_id: known", since=since)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("[2001:db8::1]:33174", "2001:db8::1"),
        ("[fe80::1%em0]:33174", "fe80::1"),
        ("unix:/var/run/smtpd.sock", "127.0.0.1"),
    ],
)
def test_the_daemon_understands_the_address(rspamd: Rspamd, source: str, address: str) -> None:
    assert understood(rspamd, session(source=source))["ip"] == address


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("bob_tag@example.net", "bob_tag@example.net"),
        ("a:b@example.net", "a:b@example.net"),
        ('"a,b"@example.net', "a,b@example.net"),
        ("a,b@example.net", "a,b@example.net"),
        ('"a b"@example.net', "a b@example.net"),
        ("a b@example.net", "a b@example.net"),
        ("@relay.example:bob@example.net", "bob@example.net"),
        ("a\r\nUser: root@example.net", "a??User: root@example.net"),
        ("o'brien@[192.0.2.1]", "o'brien@[192.0.2.1]"),
    ],
)
def test_the_daemon_takes_an_address_for_one(rspamd: Rspamd, address: str, taken: str) -> None:
    facts = understood(rspamd, session(sender=address, recipients=[address, "anna@example.org"]))
    assert facts["from"] == [taken]
    assert facts["rcpt"] == [taken, "anna@example.org"]
    assert facts.get("user") is None


def test_the_daemon_takes_the_null_sender_for_that(rspamd: Rspamd) -> None:
    assert understood(rspamd, session(sender=""))["from"] == [""]


def test_the_daemon_takes_as_many_recipients_as_smtpd(rspamd: Rspamd) -> None:
    many = [f"recipient{number}@mailing-list.example.org" for number in range(1000)]
    assert understood(rspamd, session(recipients=many))["rcpt"] == many
