"""Tests of packaging/dovecot: moving mail in a real Dovecot trains Rspamd, or SpamAssassin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import main
from smtpd_filters.testing.rspamd.daemon import PASSWORD, Rspamd
from smtpd_filters.testing.rspamd.daemon import unavailable as no_rspamd
from smtpd_filters.testing.rspamd.stub import Answer, RspamdStub
from smtpd_filters.testing.server import Lab
from tests.e2e.dovecot_set_up import PASSWORD_FILE, VERSIONS, Dovecot, unavailable
from tests.e2e.learning import BAYES, counts, mail, total
from tests.e2e.spamd_set_up import Spamd
from tests.e2e.spamd_set_up import unavailable as no_spamd
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need(no_rspamd())
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def rspamd(lab: Lab) -> Iterator[Rspamd]:
    override = {"greylist.conf": "enabled = false;"}
    with Rspamd(lab, local={"classifier-bayes.conf": BAYES}, override=override) as daemon:
        yield daemon


@pytest.fixture(scope="module", params=VERSIONS)
def dovecot(request: pytest.FixtureRequest, lab: Lab, rspamd: Rspamd) -> Iterator[Dovecot]:
    need(unavailable(request.param))
    settings = {
        "URL": rspamd.controller_url,
        "PASSWORD_FILE": PASSWORD_FILE,
        "PER_USER": "yes",
    }
    password = f"{rspamd.password}\n"
    with Dovecot(request.param, lab, settings=settings, password=password) as server:
        yield server


@pytest.fixture(autouse=True)
def _log(dovecot: Dovecot) -> Iterator[None]:
    """Show the log of what fails."""
    since = len(dovecot.log)
    yield
    print("\n".join(dovecot.log[since:]))  # noqa: T201  # pytest shows it


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """A user of the test's own, with mailboxes and a classifier of their own."""
    return re.sub(r"[^a-z0-9]+", ".", request.node.name.lower()).rstrip(".") + "@example.org"


@pytest.fixture
def closed(lab: Lab) -> Iterator[str]:
    """The url of a controller that isn't there."""
    with lab.new_socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_the_configuration_is_taken(dovecot: Dovecot) -> None:
    done = dovecot.lab.run("doveconf", "-n")
    assert b"sieve_pipe_bin_dir = /etc/dovecot/learn\n" in done.stdout
    assert done.stderr == b""
    started = next(n for n, line in enumerate(dovecot.log) if "starting up" in line)
    assert dovecot.log[:started] == []


# -- what is learned -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["MOVE", "COPY"])
def test_what_gets_into_junk_is_spam(
    dovecot: Dovecot, lab: Lab, rspamd: Rspamd, user: str, how: str
) -> None:
    before, since = lab.call(lambda: total(rspamd)), len(dovecot.log)
    with dovecot.client(user) as client:
        client.put("INBOX", mail(user, "spam"))
        client.move("INBOX", "Junk", how=how)
        assert client.count("Junk") == 1
    assert counts(rspamd, user, (1, 0)) == (1, 0)
    assert lab.call(lambda: total(rspamd)) > before
    assert dovecot.complaints(since) == []


def test_what_leaves_junk_is_ham(dovecot: Dovecot, rspamd: Rspamd, user: str) -> None:
    since = len(dovecot.log)
    with dovecot.client(user) as client:
        client.put("Junk", mail("leaves", "ham"))
        client.move("Junk", "INBOX")
        assert client.count("INBOX") == 1
        assert counts(rspamd, user, (0, 1)) == (0, 1)
        # Who has changed their mind: it is unlearned and learned the other way.
        client.move("INBOX", "Junk")
        assert counts(rspamd, user, (1, 0)) == (1, 0)
        client.move("Junk", "Work")
    assert counts(rspamd, user, (0, 1)) == (0, 1)
    assert dovecot.complaints(since) == []


@pytest.fixture(scope="module")
def spamd(lab: Lab) -> Iterator[Spamd]:
    need(no_spamd())
    with Spamd(lab) as daemon:
        yield daemon


def test_spamd_is_taught_in_place_of_rspamd(  # noqa: PLR0913  # fixtures
    dovecot: Dovecot,
    rspamd: Rspamd,
    spamd: Spamd,
    user: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each user's own classifier, which learns the other class when the message is moved back."""
    path = tmp_path / "mail"
    path.write_bytes(mail(user, "spam"))
    since = len(dovecot.log)

    def move(source: str, target: str, kind: str) -> None:
        told = len(spamd.log)
        client.move(source, target)
        spamd.wait_for(rf"Tell: Setting local for {re.escape(user)}:", since=told)
        # Known in this class already: in the other one it would be learned now.
        words = ["--spamd", str(spamd.socket), "--user", user, str(path)]
        assert main(["learn", kind, *words]) == 0
        assert capsys.readouterr().out.startswith("0 learned, 1 known already")

    with dovecot.script(SPAMD=spamd.server), dovecot.client(user) as client:
        client.put("INBOX", path.read_bytes())
        move("INBOX", "Junk", "spam")
        move("Junk", "INBOX", "ham")
    assert counts(rspamd, user) == (0, 0)
    assert dovecot.complaints(since) == []


# The last one is none but for its special use (RFC 6154).
@pytest.mark.parametrize("trash", ["Trash", "Deleted Items", "Deleted Messages", "Papierkorb"])
def test_what_is_thrown_away_is_no_ham(
    dovecot: Dovecot, rspamd: Rspamd, user: str, trash: str
) -> None:
    with dovecot.client(user) as client:
        client.put("Junk", mail(user, "spam"))
        client.move("Junk", trash)
        assert client.count(trash) == 1
        assert counts(rspamd, user) == (0, 0)
        # The daemon is asked for this one, so that nothing of the other can come later.
        client.put("Junk", mail(f"{user}.2", "ham"))
        client.move("Junk", "INBOX")
    assert counts(rspamd, user, (0, 1)) == (0, 1)


def test_appended_mail_is_not_learned(dovecot: Dovecot, rspamd: Rspamd, user: str) -> None:
    since = len(dovecot.log)
    with dovecot.client(user) as client:
        client.put("Junk", mail("put", "spam"))
        client.select("Junk")
        client.store("1", "+FLAGS", r"(\Seen $NotJunk)")
        client.store("1", "+FLAGS", r"(\Deleted)")
        client.expunge()
        assert counts(rspamd, user) == (0, 0)
        # But where the cause "append" is added to the mailbox's.
        client.put("Reported", mail("reported", "spam"))
    assert counts(rspamd, user, (1, 0)) == (1, 0)
    assert dovecot.complaints(since) == []


def test_many_at_once(dovecot: Dovecot, rspamd: Rspamd, user: str) -> None:
    since = len(dovecot.log)
    with dovecot.client(user) as client:
        for number in range(5):
            client.put("INBOX", mail(f"{user}.{number}", "spam"))
        client.move("INBOX", "Junk", "1:*")
        assert (client.count("INBOX"), client.count("Junk")) == (0, 5)
    # What rspamd would call spam anyway it doesn't learn; in Redis it is a little later.
    spam, ham = counts(rspamd, user, (5, 0))
    assert (0 < spam <= 5, ham) == (True, 0)
    assert dovecot.complaints(since) == []


SEPARATOR = b"From bob@example.net Sat Nov 21 06:00:00 2026\n"
ODD = {
    "8-bit": (mail("8-bit", "spam") + bytes(range(128, 256)), 1),
    "binary": (mail("binary", "spam") + bytes(range(1, 256)) * 40, 1),
    "crlf": (mail("crlf", "spam").replace(b"\n", b"\r\n"), 1),
    "no newline": (mail("no newline", "spam").rstrip(), 1),
    "1 MB": (mail("1 MB", "spam") + b"all work and no play\n" * 50_000, 1),
    "a long line": (mail("long", "spam") + b"x" * 100_000 + b"\n", 1),
    "as an mbox": (SEPARATOR + mail("mbox", "spam") + b"\n" + SEPARATOR + mail("1", "ham"), 1),
    "no header": (b"\n" + mail("no header", "spam"), 1),
    # It has nothing to learn from these.
    "short": (b"Subject: hello\n\nhello\n", 0),
    "empty": (b"\n", 0),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_messages(dovecot: Dovecot, rspamd: Rspamd, user: str, name: str) -> None:
    message, learned = ODD[name]
    since = len(dovecot.log)
    with dovecot.client(user) as client:
        client.put("INBOX", message)
        client.move("INBOX", "Junk")
        assert client.count("Junk") == 1
    assert counts(rspamd, user, (learned, 0)) == (learned, 0)
    assert dovecot.complaints(since) == []


@pytest.fixture
def stub(lab: Lab) -> Iterator[RspamdStub]:
    """A controller that shows what it is given."""
    daemon = RspamdStub(Answer(b'{"success":true}'))
    lab.call(daemon.__enter__)
    try:
        yield daemon
    finally:
        daemon.__exit__(None, None, None)


def test_the_daemon_is_given_what_was_stored(dovecot: Dovecot, stub: RspamdStub, user: str) -> None:
    since = len(dovecot.log)
    with dovecot.script(URL=stub.url), dovecot.client(user) as client:
        for message, _ in ODD.values():
            client.put("INBOX", message)
        client.move("INBOX", "Junk", "1:*")
    # Dovecot pipes CRLF, however it stores the ends of lines.
    given = [request.body for request in stub.requests]
    assert [message.replace(b"\r\n", b"\n") for message in given] == [
        message.replace(b"\r\n", b"\n") for message, _ in ODD.values()
    ]
    for request in stub.requests:
        assert request.path == "/learnspam"
        assert request.get("Password") == PASSWORD
        assert request.get("Deliver-To") == user
    assert dovecot.complaints(since) == []


# -- what goes wrong -----------------------------------------------------------------------------


def fails(dovecot: Dovecot, user: str, said: str, status: int) -> None:
    """A move of a message by which something goes wrong: it is moved, and the log says it all."""
    since = len(dovecot.log)
    with dovecot.client(user) as client:
        client.put("INBOX", mail(user, "spam"))
        client.move("INBOX", "Junk")
        assert (client.count("INBOX"), client.count("Junk")) == (0, 1)
    dovecot.wait_for(f"imap: Error: .*{said}", since=since)
    dovecot.wait_for(rf"imap\({user}\).*rspamd-learn .* exit code {status}", since=since)


def test_a_controller_that_is_not_there(
    dovecot: Dovecot, rspamd: Rspamd, user: str, closed: str
) -> None:
    with dovecot.script(URL=closed):
        fails(dovecot, user, f"stdin: {closed}: Connection refused", 75)
    assert counts(rspamd, user) == (0, 0)
    # When it is there, who moves it again has it learned.
    with dovecot.client(user) as client:
        client.move("Junk", "Trash")
        client.move("Trash", "Junk")
    assert counts(rspamd, user, (1, 0)) == (1, 0)


def test_a_controller_that_does_not_answer(dovecot: Dovecot, lab: Lab, user: str) -> None:
    with lab.new_socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with dovecot.script(URL=url, TIMEOUT="0.3"):
            fails(dovecot, user, f"stdin: {url}: no reply within 0.3 s", 75)


def test_a_password_that_is_wrong(dovecot: Dovecot, rspamd: Rspamd, user: str) -> None:
    with dovecot.script(PASSWORD_FILE=""):
        fails(dovecot, user, "stdin: wrong password", 77)
    assert counts(rspamd, user) == (0, 0)


def test_a_password_that_users_may_not_read(dovecot: Dovecot, rspamd: Rspamd, user: str) -> None:
    password = dovecot.etc("learn/password")
    mode = password.stat().st_mode
    # As it has to be, and then as it is when its group has been forgotten.
    assert mode & 0o777 == 0o640
    password.chmod(0o600)
    try:
        fails(dovecot, user, f"--password-file: {PASSWORD_FILE}: Permission denied", 78)
    finally:
        password.chmod(mode)
    assert counts(rspamd, user) == (0, 0)


def test_without_the_program(dovecot: Dovecot, user: str) -> None:
    with dovecot.script(PATH="/nowhere"):
        fails(dovecot, user, "smtpd-filters: not found", 127)


def test_users_may_not_run_programs_themselves(dovecot: Dovecot, user: str) -> None:
    def put(script: str) -> tuple[int, bytes]:
        words = ["doveadm", "sieve", "put", "-u", user, "own"]
        done = dovecot.lab.run(*words, input=script.encode(), check=False)
        return done.returncode, done.stdout + done.stderr

    assert put('require "copy"; redirect :copy "bob@example.net";')[0] == 0
    status, said = put('require "vnd.dovecot.pipe"; pipe "rspamd-learn";')
    assert status != 0
    assert b"vnd.dovecot.pipe" in said
