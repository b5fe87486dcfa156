"""The state of a client, which is built from reports alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.protocol.vocabulary import REPORTS
from smtpd_filters.session import (
    FIELDS,
    TOGETHER,
    NotReportedError,
    Session,
    Transaction,
    as_taken,
    parameter,
    parameters,
    submitter,
)

KEY = b"7641df9771b4ed00"
EVERYTHING = [field for fields in FIELDS.values() for field in fields]
COUNTERS = {"refused_recipients"}


def session(*reports: tuple[str, tuple[bytes, ...]]) -> Session:
    made = Session(KEY).expect(EVERYTHING)
    for name, values in reports:
        made.apply(name, values)
    return made


def connected(rdns: bytes, fcrdns: bytes, src: bytes, dest: bytes) -> Session:
    return session(("link-connect", (rdns, fcrdns, src, dest)))


def test_a_client_by_ipv4() -> None:
    made = connected(b"mx.example.org", b"pass", b"192.0.2.1:33174", b"198.51.100.2:25")
    assert made.id == "7641df9771b4ed00"
    assert made.rdns == "mx.example.org"
    assert made.fcrdns == "pass"
    assert made.src == "192.0.2.1:33174"
    assert made.dest == "198.51.100.2:25"
    assert made.address == "192.0.2.1"
    assert not made.local
    assert repr(made) == "<session 7641df9771b4ed00 mx.example.org 192.0.2.1:33174>"


def test_a_client_by_ipv6() -> None:
    made = connected(b"<unknown>", b"fail", b"[2001:db8::1]:25", b"[::1]:25")
    assert made.address == "2001:db8::1"
    assert made.rdns is None
    assert made.fcrdns == "fail"
    assert "<unknown>" in repr(made)


def test_a_local_client() -> None:
    made = connected(b"mx.example.org", b"pass", b"unix:/run/smtpd.sock", b"unix:/run/smtpd.sock")
    assert made.local
    assert made.by_socket
    assert made.address is None


@pytest.mark.parametrize(
    ("src", "address"),
    [
        (b"127.0.0.1:33174", "127.0.0.1"),
        (b"127.255.255.254:1", "127.255.255.254"),
        (b"[::1]:33174", "::1"),
        (b"[::ffff:127.0.0.1]:33174", "::ffff:127.0.0.1"),
    ],
)
def test_a_client_at_a_loopback_address_is_local(src: bytes, address: str) -> None:
    made = connected(b"localhost", b"pass", src, b"198.51.100.2:25")
    assert made.local
    assert not made.by_socket
    assert made.address == address


@pytest.mark.parametrize(
    "src",
    [
        *(b"198.51.100.2:1", b"[2001:db8::1]:25", b"[::ffff:128.0.0.1]:1", b"128.0.0.1:1"),
        *(b"127.0.0.1", b"127.0.0.256:1", b"127.0.0:1", b"127.0.0.1.example:1", b"127.:1"),
        *(b"127.0.0.-1:1", b"[::1]", b"[::1].example:1", b"[::ffff:127.0.0]:1", b"local:1"),
    ],
)
def test_a_client_at_any_other_is_not(src: bytes) -> None:
    made = connected(b"localhost", b"pass", src, b"198.51.100.2:25")
    assert not made.local
    assert not made.by_socket


@pytest.mark.parametrize("rdns", [b"<unknown>", b""])
def test_no_reverse_name(rdns: bytes) -> None:
    # smtpd-filters(7) says that it would be empty, smtpd writes "<unknown>".
    assert connected(rdns, b"fail", b"192.0.2.1:1", b"192.0.2.2:25").rdns is None


@pytest.mark.parametrize("rdns", [b"192.0.2.1", b"2001:db8::1"])
def test_an_address_in_place_of_a_name_is_not_confirmed(rdns: bytes) -> None:
    made = connected(rdns, b"pass", b"192.0.2.1:1", b"192.0.2.2:25")
    assert (made.rdns, made.fcrdns) == (rdns.decode(), "fail")


@pytest.mark.parametrize("rdns", [b"192.0.2.1.example", b"192.0.2", b"3221225985", b"0.0.2.256"])
def test_a_name_of_digits_is_one(rdns: bytes) -> None:
    assert connected(rdns, b"pass", b"192.0.2.1:1", b"192.0.2.2:25").fcrdns == "pass"


@pytest.mark.parametrize(
    ("size", "told", "known"),
    [(63, "fail", "fail"), (64, "fail", "error"), (65, "fail", "fail"), (64, "pass", "pass")],
)
def test_a_name_that_smtpd_may_have_cut(size: int, told: str, known: str) -> None:
    made = connected(b"a" * size, told.encode(), b"192.0.2.1:1", b"192.0.2.2:25")
    assert made.fcrdns == known


def test_what_is_known_before_any_report() -> None:
    made = session()
    assert (made.rdns, made.fcrdns, made.src, made.dest) == (None, "error", "", "")
    assert made.address is None
    assert not made.local
    assert made.refused_recipients == 0
    assert all(getattr(made, field) is None for field in EVERYTHING if field not in COUNTERS)


def test_the_name_with_which_the_server_greeted_the_client() -> None:
    made = session(("link-greeting", (b"mx.example.org",)))
    assert made.server_name == "mx.example.org"
    made.apply("link-identify", (b"EHLO", b"mail.example.net"))
    assert made.server_name == "mx.example.org"


def test_the_greeting_is_the_last_one() -> None:
    made = session(("link-identify", (b"HELO", b"first")))
    assert (made.method, made.identity) == ("HELO", "first")
    made.apply("link-tls", (b"TLSv1.3:TLS_AES_256_GCM_SHA384:256",))
    made.apply("link-identify", (b"EHLO", b"second|third"))
    assert made.tls == "TLSv1.3:TLS_AES_256_GCM_SHA384:256"
    assert (made.method, made.identity) == ("EHLO", "second|third")


def test_the_mail_command_is_the_last_one() -> None:
    assert session(("protocol-client", (b"EHLO mail.example.net",))).mail_command is None
    made = session(("protocol-client", (b"mail from:<a|b@example.net> SIZE=10",)))
    made.apply("protocol-client", (b"RCPT TO:<b@example.net>",))
    assert made.mail_command == "mail from:<a|b@example.net> SIZE=10"
    made.apply("protocol-client", (b"MAIL FROM:<>",))
    assert made.mail_command == "MAIL FROM:<>"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (None, []),
        ("MAIL FROM:a@b SIZE=1", []),
        ("MAIL FROM:<a@b>", []),
        ("MAIL FROM:<SIZE=5@b>  BODY=7BIT ", ["BODY=7BIT"]),
        ("MAIL FROM:<a@b>SIZE=1 AUTH=<> RET=HDRS", ["SIZE=1", "AUTH=<>", "RET=HDRS"]),
    ],
)
def test_the_parameters_of_a_command(command: str | None, words: list[str]) -> None:
    assert parameters(command) == words


@pytest.mark.parametrize(
    ("command", "value"),
    [
        (None, None),
        ("MAIL FROM:<a@b>", None),
        ("MAIL FROM:<a@b> SIZE=1 auth=joe+40example.org RET=HDRS", "joe+40example.org"),
        ("MAIL FROM:<a@b> AUTH=a=b", "a=b"),
        ("MAIL FROM:<a@b> AUTH", None),
        ("MAIL FROM:<a@b> AUTH= ", ""),
        ("MAIL FROM:<a@b> XAUTH=x AUTH=<> AUTH=y", "<>"),
    ],
)
def test_one_parameter_of_a_command(command: str | None, value: str | None) -> None:
    assert parameter(command, "AUTH") == value


@pytest.mark.parametrize(
    ("result", "parameters_", "found"),
    [
        (b"pass", b"AUTH=joe+40example.org", "joe+40example.org"),
        (b"pass", b"AUTH=<>", None),
        (b"pass", b"AUTH=", None),
        (b"pass", b"SIZE=1", None),
        (b"fail", b"AUTH=joe", None),
    ],
)
def test_who_submitted_a_message(result: bytes, parameters_: bytes, found: str | None) -> None:
    made = session(
        ("link-auth", (result, b"alice")),
        ("protocol-client", (b"MAIL FROM:<a@b> " + parameters_,)),
    )
    assert submitter(made) == found


def test_the_mechanism_of_an_authentication_and_nothing_more() -> None:
    mechanisms = {
        b"auth login": "LOGIN",
        b"AUTH PLAIN AGJvYgBzZWNyZXQ=": "PLAIN",
        b"AUTH c2VjcmV0": None,
    }
    for command, mechanism in mechanisms.items():
        assert session(("protocol-client", (command,))).auth_mechanism == mechanism


def test_the_mechanism_stays_once_a_client_is_authenticated() -> None:
    """smtpd refuses another AUTH then."""
    made = session(
        ("protocol-client", (b"AUTH PLAIN",)),
        ("link-auth", (b"fail", b"bob")),
        ("protocol-client", (b"AUTH LOGIN",)),
        ("link-auth", (b"pass", b"bob")),
        ("protocol-client", (b"AUTH FOO",)),
    )
    assert made.auth_mechanism == "LOGIN"


@pytest.mark.parametrize("result", [b"fail", b"error", b"", b"PASS"])
def test_only_who_passes_is_authenticated(result: bytes) -> None:
    made = session(("link-auth", (b"pass", b"a|b")))
    assert made.username == "a|b"
    made.apply("link-auth", (result, b"a|b"))
    assert made.username is None


def test_who_fails_has_a_name() -> None:
    made = session(("link-auth", (b"fail", b"j\\M-C\\M-6rg")))
    assert made.failed_username == "jörg"
    made.apply("link-auth", (b"pass", b"a"))
    assert made.failed_username is None


def test_a_transaction_from_beginning_to_end() -> None:
    made = session(("tx-begin", (b"1ef1c203",)))
    tx = made.tx
    assert tx is not None
    assert (tx.msgid, tx.sender, tx.recipients, tx.rejected) == ("1ef1c203", None, [], 0)
    made.apply("tx-mail", (b"1ef1c203", b"ok", b"Sender@example.org"))
    made.apply("tx-rcpt", (b"1ef1c203", b"ok", b"one@example.net"))
    made.apply("tx-rcpt", (b"1ef1c203", b"permfail", b"two@example.net"))
    made.apply("tx-rcpt", (b"1ef1c203", b"tempfail", b"three@example.net"))
    made.apply("tx-rcpt", (b"1ef1c203", b"ok", b"four@example.net"))
    assert made.tx is tx
    assert tx.sender == "Sender@example.org"
    assert tx.recipients == ["one@example.net", "four@example.net"]
    assert tx.rejected == 2
    assert "1ef1c203" in repr(tx)
    assert "four@example.net" in repr(tx)
    made.apply("tx-reset", (b"1ef1c203",))
    assert made.tx is None


def test_the_null_sender_is_empty_and_not_missing() -> None:
    made = session(("tx-begin", (b"1",)), ("tx-mail", (b"1", b"ok", b"")))
    assert made.tx is not None
    assert made.tx.sender == ""


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        *((b"a@b", b"a@b"), (b"a", b"a"), (b"", b""), (b"a@[IPv6:::1]", b"a@[IPv6:::1]")),
        *((b"@r:a@b", b"a@b"), (b"@r,@s:a@b", b"a@b"), (b"x:a@b", b"a@b"), (b"c@d:a@b", b"a@b")),
        *((b'"x":a@b', b"a@b"), (b'"x:a@b', b"a@b"), (b'"c@d":a@[::1]', b"a@[::1]")),
        *((b"x:a", b"a"), (b"x:", b""), (b":", b""), (b"x:@", b""), (b'"x":', b"")),
        *((b"@", b""), (b"a@", b"a"), (b"x:a@", b"a"), (b'"x":@', b"")),
    ],
)
def test_an_address_is_the_one_that_smtpd_takes(written: bytes, taken: bytes) -> None:
    assert as_taken(written) == taken
    made = session(("tx-begin", (b"1",)), ("tx-mail", (b"1", b"ok", written)))
    made.apply("tx-rcpt", (b"1", b"ok", written))
    assert made.tx is not None
    assert made.tx.sender == taken.decode()
    assert made.tx.recipients == [taken.decode()]


@pytest.mark.parametrize("result", [b"permfail", b"tempfail"])
def test_a_sender_that_was_refused_is_none(result: bytes) -> None:
    made = session(("tx-begin", (b"1",)), ("tx-mail", (b"1", result, b"a@example.org")))
    assert made.tx is not None
    assert made.tx.sender is None


def test_a_refused_sender_alone_begins_no_transaction() -> None:
    # As recorded: tx-mail may carry the message id 00000000 on permfail.
    made = session(("tx-mail", (b"00000000", b"permfail", b"a@example.org")))
    assert made.tx is None


@pytest.mark.parametrize("name", ["tx-mail", "tx-rcpt"])
def test_a_transaction_whose_beginning_was_missed(name: str) -> None:
    made = session((name, (b"1ef1c203", b"ok", b"a@example.org")))
    assert made.tx is not None
    assert made.tx.msgid == "1ef1c203"
    assert "a@example.org" in (made.tx.sender, *made.tx.recipients)


def test_a_report_of_a_transaction_that_nobody_asked_for() -> None:
    made = Session(KEY)
    made.apply("tx-mail", (b"1ef1c203", b"ok", b"a@example.org"))
    made.apply("tx-rcpt", (b"1ef1c203", b"ok", b"b@example.org"))
    made.apply("tx-rcpt", (b"1ef1c203", b"permfail", b"c@example.org"))
    assert made.tx is not None
    assert (made.tx.sender, made.tx.recipients) == ("a@example.org", ["b@example.org"])
    assert made.tx.rejected == 1


@pytest.mark.parametrize(("phase", "left"), [("rcpt-to", ""), ("ehlo", "ehlo")])
def test_a_mark_ends_with_the_transaction_that_it_is_of(phase: str, left: str) -> None:
    made = session(("tx-begin", (b"1",)))
    made.mark = phase
    made.apply("tx-reset", (b"1",))
    assert made.mark == left


def test_the_recipients_that_are_refused_for_good_are_counted_in_all_of_a_session() -> None:
    made = session(("tx-begin", (b"1",)))
    made.apply("tx-rcpt", (b"1", b"permfail", b"one@example.net"))
    made.apply("tx-rcpt", (b"1", b"ok", b"two@example.net"))
    # What is refused for the moment says nothing about the recipient.
    made.apply("tx-rcpt", (b"1", b"tempfail", b"three@example.net"))
    made.apply("tx-reset", (b"1",))
    assert made.refused_recipients == 1
    # Behind STARTTLS it is the same client.
    made.apply("link-tls", (b"TLSv1.3:TLS_AES_256_GCM_SHA384:256",))
    made.apply("tx-begin", (b"2",))
    made.apply("tx-rcpt", (b"2", b"permfail", b"no address"))
    made.apply("tx-rcpt", (b"2", b"permfail", b"four@example.net"))
    assert made.refused_recipients == 3
    assert made.tx is not None
    assert made.tx.rejected == 2


def test_a_new_transaction_knows_nothing_of_the_last() -> None:
    made = session(("tx-begin", (b"1",)), ("tx-mail", (b"1", b"ok", b"a@example.org")))
    made.apply("tx-begin", (b"2",))
    assert made.tx is not None
    assert (made.tx.msgid, made.tx.sender) == ("2", None)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("new@example.org", "new@example.org"),
        ("<new@example.org>", "new@example.org"),
        ("<new@example.org> SIZE=1", "new@example.org"),
        ("<>", ""),
        ("", ""),
    ],
)
def test_what_was_rewritten_shows_rewritten(said: str, shown: str) -> None:
    made = session(("tx-begin", (b"1",)))
    made.rewritten("mail-from", said)
    made.apply("tx-mail", (b"1", b"ok", b"old@example.org"))
    made.rewritten("rcpt-to", said)
    made.apply("tx-rcpt", (b"1", b"ok", b"old@example.net"))
    made.apply("tx-rcpt", (b"1", b"ok", b"other@example.net"))
    assert made.tx is not None
    assert made.tx.sender == shown
    assert made.tx.recipients == [shown, "other@example.net"]


def test_a_rewritten_address_that_is_refused_is_used_up() -> None:
    made = session(("tx-begin", (b"1",)))
    made.rewritten("rcpt-to", "new@example.org")
    made.apply("tx-rcpt", (b"1", b"permfail", b"old@example.org"))
    made.apply("tx-rcpt", (b"1", b"ok", b"next@example.org"))
    assert made.tx is not None
    assert made.tx.recipients == ["next@example.org"]


def test_a_rewritten_address_does_not_outlive_its_transaction() -> None:
    made = session(("tx-begin", (b"1",)))
    made.rewritten("rcpt-to", "new@example.org")
    made.apply("tx-reset", (b"1",))
    made.apply("tx-rcpt", (b"2", b"ok", b"next@example.org"))
    assert made.tx is not None
    assert made.tx.recipients == ["next@example.org"]


@pytest.mark.parametrize(("report", "field"), [(r, f) for r, fs in FIELDS.items() for f in fs])
def test_a_field_nobody_asked_for_is_not_nothing(report: str, field: str) -> None:
    made = Session(KEY)
    with pytest.raises(NotReportedError, match=f"session.{field} needs the report '{report}'"):
        getattr(made, field)
    made.expect([field])
    assert getattr(made, field) == (0 if field in COUNTERS else None)


def test_a_filter_of_mail_from_alone_learns_where_there_is_a_transaction() -> None:
    with pytest.raises(NotReportedError, match="'tx-begin': rcpt_to and later handlers have it"):
        _ = Session(KEY).tx


def test_an_attribute_that_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sender'"):
        Session(KEY).sender  # noqa: B018  # reading it is the test


def test_the_fields_and_the_reports_are_the_protocols() -> None:
    assert FIELDS.keys() <= REPORTS.keys()
    for names in TOGETHER.values():
        assert set(names) <= REPORTS.keys()


def test_scratch_belongs_to_its_session_and_transaction() -> None:
    one, two = session(), session()
    filter_ = object()
    one.scratch[filter_] = 1
    assert one.scratch == {filter_: 1}
    assert two.scratch == {}
    assert Transaction("1").scratch is not Transaction("1").scratch


def test_bytes_that_are_no_text_come_back_as_they_were() -> None:
    made = connected(b"a\xff\xc3\xa4.example", b"pass", b"192.0.2.1:1", b"192.0.2.2:25")
    assert made.rdns == "a\udcffä.example"
    assert made.rdns.encode("utf-8", "surrogateescape") == b"a\xff\xc3\xa4.example"


@pytest.mark.parametrize(
    "src", [b"", b":", b"[", b"[]:", b"unix:", b"\xff\xff:1", b"192.0.2.1", b"[::1]"]
)
def test_odd_addresses_raise_nothing(src: bytes) -> None:
    made = connected(b"x", b"pass", src, src)
    assert made.local == src.startswith(b"unix:")
    assert made.address is None or isinstance(made.address, str)


@given(
    st.lists(
        st.sampled_from(sorted(REPORTS)).flatmap(
            lambda name: st.tuples(
                st.just(name),
                st.tuples(*(st.binary(max_size=20) for _ in REPORTS[name].fields)),
            )
        ),
        max_size=20,
    )
)
def test_no_report_raises(reports: list[tuple[str, tuple[bytes, ...]]]) -> None:
    made = session()
    for name, values in reports:
        made.rewritten("mail-from", "<")
        made.apply(name, values)
        made.rewritten("rcpt-to", "<a")
    assert isinstance(repr(made), str)
    assert made.id
    assert made.address is None or isinstance(made.address, str)
    assert isinstance(made.local, bool)
