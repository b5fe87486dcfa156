"""The reports of a session that are kept: in order, current, bounded."""

from __future__ import annotations

from smtpd_filters.supervise.ledger import MAX_SESSION, MAX_TRANSACTION, Session


def row(name: str, *values: str) -> tuple[bytes, bytes]:
    line = "|".join(("report", "0.7", "1.0", "smtp-in", name, "00000000000000ee", *values))
    return name.encode(), line.encode()


def names(session: Session) -> list[str]:
    return [line.split(b"|")[4].decode() for line in session.lines]


def test_a_transaction_is_forgotten_when_it_ends() -> None:
    session = Session(b"00000000000000ee")
    for name in ("link-connect", "link-identify", "tx-begin", "tx-mail", "tx-rcpt", "tx-data"):
        session.keep(*row(name))
    session.end_transaction()
    assert names(session) == ["link-connect", "link-identify"]
    session.end_transaction()
    session.keep(*row("tx-begin"))
    assert names(session) == ["link-connect", "link-identify", "tx-begin"]


def test_reports_of_the_session_within_a_transaction_stay() -> None:
    session = Session(b"00000000000000ee")
    for name in ("link-connect", "tx-begin", "link-identify", "tx-mail"):
        session.keep(*row(name))
    assert names(session) == ["link-connect", "tx-begin", "link-identify", "tx-mail"]
    session.end_transaction()
    assert names(session) == ["link-connect", "link-identify"]


def test_a_client_that_greets_again_and_again() -> None:
    session = Session(b"00000000000000ee")
    session.keep(*row("link-connect"))
    for number in range(10 * MAX_SESSION):
        session.keep(*row("link-identify", str(number)))
        if number == MAX_SESSION // 2:
            session.keep(*row("tx-begin"))
    assert len(session.lines) == MAX_SESSION + 1
    assert names(session)[0] == "link-connect"
    assert session.lines[-1].endswith(b"|%d" % (10 * MAX_SESSION - 1))
    session.end_transaction()
    assert "tx-begin" not in names(session)
    assert len(session.lines) == MAX_SESSION


def test_what_is_reported_once_stays_after_many_greetings() -> None:
    session = Session(b"00000000000000ee")
    session.keep(*row("link-connect"))
    for number in range(2 * MAX_SESSION):
        session.keep(*row("link-identify", str(number)))
    session.keep(*row("link-tls"))
    session.keep(*row("link-auth"))
    assert names(session)[0] == "link-connect"
    assert names(session)[-2:] == ["link-tls", "link-auth"]


def test_a_report_that_is_processed_again_is_kept_once() -> None:
    session = Session(b"00000000000000ee")
    for name in ("link-connect", "tx-begin", "tx-mail"):
        again = row(name)
        session.keep(*again)
        session.keep(*again)
    assert names(session) == ["link-connect", "tx-begin", "tx-mail"]
    assert session.own == 1


def test_refused_recipients_do_not_accumulate() -> None:
    session = Session(b"00000000000000ee")
    session.keep(*row("tx-begin"))
    for number in range(2 * MAX_TRANSACTION):
        session.keep(*row("tx-rcpt", "m", "permfail", f"a{number}@example.org"))
    session.keep(*row("tx-rcpt", "m", "ok", "b@example.org"))
    assert len(session.lines) == MAX_TRANSACTION + 1
    assert session.lines[-1].endswith(b"b@example.org")


def asked(phase: str, *values: str) -> bytes:
    fields = (phase, "00000000000000ee", "00000000000000a0", *values)
    return "|".join(("filter", "0.7", "1.0", "smtp-in", *fields)).encode()


def ask(session: Session, phase: str, *values: str) -> None:
    """Ask a program, as the engine does."""
    if session.asked:
        session.keep_request()
    session.asked, session.asked_at = asked(phase, *values), phase.encode()


def test_requests_are_kept_in_order_with_the_reports() -> None:
    session = Session(b"00000000000000ee")
    for phase, *reports in (
        ("connect", "link-greeting"),
        ("ehlo",),
        ("starttls", "link-tls"),
        ("ehlo", "link-identify"),
        ("auth", "link-auth"),
        ("mail-from", "tx-begin", "tx-mail"),
        ("rcpt-to", "tx-rcpt"),
        ("noop",),
        ("rcpt-to",),
        ("data", "tx-data"),
    ):
        ask(session, phase, "x")
        for name in reports:
            session.keep(*row(name))
    of_session = ["connect", "link-greeting", "ehlo", "starttls", "link-tls", "ehlo"]
    of_session += ["link-identify", "link-auth"]
    assert names(session) == [
        *of_session,
        *("mail-from", "tx-begin", "tx-mail", "rcpt-to", "tx-rcpt", "rcpt-to", "data", "tx-data"),
    ]
    ask(session, "commit")
    session.end_transaction()
    assert names(session) == of_session


def test_a_sender_replaces_one_that_has_begun_no_transaction() -> None:
    session = Session(b"00000000000000ee")
    for number in range(3):
        ask(session, "mail-from", str(number))
        ask(session, "helo", str(number))
    session.keep(*row("link-identify"))
    ask(session, "mail-from", "last")
    session.keep(*row("tx-begin"))
    assert names(session) == ["helo", "helo", "helo", "link-identify", "mail-from", "tx-begin"]
    session.end_transaction()
    assert names(session) == ["helo", "helo", "helo", "link-identify"]


def test_requests_of_a_client_that_repeats_its_commands() -> None:
    session = Session(b"00000000000000ee")
    session.keep(*row("link-connect"))
    for number in range(3 * MAX_SESSION):
        ask(session, "helo", str(number))
        session.keep(*row("link-identify", str(number)))
    assert len(session.lines) == session.own == MAX_SESSION
    assert names(session)[:2] == ["link-connect", "helo"]
    assert names(session)[-2:] == ["helo", "link-identify"]
    ask(session, "mail-from")
    for number in range(2 * MAX_TRANSACTION):
        ask(session, "rcpt-to", str(number))
    assert len(session.lines) == MAX_SESSION + MAX_TRANSACTION
