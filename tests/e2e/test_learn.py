"""`smtpd-filters learn` with the real rspamd and its Redis: what is learned is learned."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

from smtpd_filters.cli import main
from smtpd_filters.testing.rspamd import Rspamd, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

TOOL = [sys.executable, "-c", "import sys; from smtpd_filters.cli import main; sys.exit(main())"]
# A classifier for each user, so that a test has a user of its own; 200 messages are not needed.
BAYES = "per_user = true;\nusers_enabled = true;\nmin_learns = 1;\n"


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Rspamd]:
    if reason := unavailable():
        if os.environ.get("SMTPD_FILTERS_E2E") == "required":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    override = {"greylist.conf": "enabled = false;"}
    with Rspamd(zone={}, local={"classifier-bayes.conf": BAYES}, override=override) as daemon:
        yield daemon


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """A user of the test's own."""
    return f"{request.node.name}@example.org".replace("[", ".").replace("]", "")


@pytest.fixture
def flags(rspamd: Rspamd, tmp_path: Path, user: str) -> list[str]:
    (tmp_path / "password").write_text(f"{rspamd.password}\n")
    words = ["-url", rspamd.controller_url, "--password-file", str(tmp_path / "password")]
    return [*words, "--user", user]


# English: rspamd makes a token of the language, and of gibberish it guesses one at random.
TEXTS = {
    "spam": """You have been selected to receive a large amount of money. To claim your prize please
send us the number of your bank account and a small fee before the end of this week. This offer is
for you only, and nobody else will ever see it. Our cheap watches are the best in the whole world,
and every customer who buys two of them gets another one for free. Do not wait, because the price
goes up tomorrow morning.""",
    "ham": """The meeting about the new garden fence takes place on Thursday in the small room
behind the library. Could you bring the drawings that the carpenter made, and ask your brother
whether he wants to come with us? We still need somebody who knows how to paint old wood.
Afterwards there will be soup and bread in the kitchen, and the children can play outside until
their parents have finished talking.""",
}


def mail(number: int | str, kind: str) -> bytes:
    return (
        f"From: <bob@example.net>\nTo: <anna@example.org>\nSubject: about {kind}\n"
        f"Message-Id: <{number}.{kind}@example.net>\nDate: Sat, 21 Nov 2026 06:00:00 +0000\n\n"
        f"{TEXTS[kind]}\n\n{number}\n"
    ).encode()


def ask(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def counts(rspamd: Rspamd, user: str, expected: tuple[int, int] | None = None) -> tuple[int, int]:
    """How many messages the classifier of this user has learned as spam and as ham.

    The daemon says that it has learned before Redis has been told: what is expected is waited for.
    """
    deadline = monotonic() + 10
    with Redis(unix_socket_path=str(rspamd.redis), decode_responses=True) as redis:
        while True:
            spam, ham = redis.hmget(f"RS{user}", "learns_spam", "learns_ham")
            found = int(spam or 0), int(ham or 0)
            if expected in (None, found) or monotonic() > deadline:
                return found


def known(rspamd: Rspamd) -> int:
    """How many messages the daemon would know again."""
    with Redis(unix_socket_path=str(rspamd.redis)) as redis:
        return int(redis.hlen("learned_ids"))


def total(rspamd: Rspamd) -> int:
    """How many messages the controller says it has learned."""
    said = ask(rspamd.controller_url, "GET", "/stat", Password=rspamd.password)
    return int(said["learned"])


def bayes(rspamd: Rspamd, message: bytes, user: str) -> set[str]:
    """The classifier's symbols for a message to this user."""
    headers = {"Deliver-To": user, "Rcpt": user, "From": "bob@example.net"}
    symbols = ask(rspamd.url, "POST", "/checkv2", message, **headers)["symbols"]
    return {name for name in symbols if name.startswith("BAYES_")}


def test_learning_changes_the_count(
    rspamd: Rspamd, flags: list[str], user: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "mail"
    path.write_bytes(mail("count", "spam"))
    before, remembered = total(rspamd), known(rspamd)
    assert main(["learn", "spam", *flags, str(path)]) == 0
    assert counts(rspamd, user, (1, 0)) == (1, 0)
    assert total(rspamd) > before
    assert capsys.readouterr().out.startswith("1 learned, 0 known")
    deadline = monotonic() + 10
    while known(rspamd) == remembered:
        assert monotonic() < deadline
    # Once more is no failure, and learns nothing.
    assert main(["learn", "spam", *flags, str(path)]) == 0
    assert capsys.readouterr().out.startswith("0 learned, 1 known")
    # The other way it is unlearned and learned.
    assert main(["learn", "ham", *flags, str(path)]) == 0
    assert capsys.readouterr().out.startswith("1 learned, 0 known")
    assert counts(rspamd, user, (0, 1)) == (0, 1)


def test_what_was_learned_is_told_of_new_mail(
    rspamd: Rspamd, flags: list[str], user: str, tmp_path: Path, capsys: Capture
) -> None:
    seen = []
    for kind in ("spam", "ham"):
        box = tmp_path / kind
        for name in ("cur", "new", "tmp"):
            (box / name).mkdir(parents=True)
        for number in range(12):
            where = "new" if number % 2 else "cur"
            (box / where / f"{number}").write_bytes(mail(f"carl{number}", kind))
        assert main(["learn", kind, *flags, "--jobs", "4", str(box)]) == 0
        # Of what it would call spam anyway it learns no more.
        said = re.match(r"(\d+) learned, 0 known already, (\d+) skipped", capsys.readouterr().out)
        assert said is not None
        assert 0 < int(said[1]) == 12 - int(said[2])
        seen.append(int(said[1]))
    assert counts(rspamd, user, (seen[0], seen[1])) == (seen[0], seen[1])
    assert bayes(rspamd, mail("new", "spam"), user) == {"BAYES_SPAM"}
    assert bayes(rspamd, mail("new", "ham"), user) == {"BAYES_HAM"}
    # Of another user's mail it says nothing.
    assert bayes(rspamd, mail("new", "spam"), "dora@example.org") == set()


def test_a_message_from_stdin_over_the_socket(rspamd: Rspamd, flags: list[str], user: str) -> None:
    flags[1] = str(rspamd.controller_socket)
    done = subprocess.run(
        [*TOOL, "learn", "ham", *flags],
        input=mail("stdin", "ham"),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert counts(rspamd, user, (0, 1)) == (0, 1)


def test_a_message_that_is_too_short(
    rspamd: Rspamd, flags: list[str], user: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mail").write_bytes(b"From: <bob@example.net>\n\nshort\n")
    assert main(["learn", "spam", *flags, str(tmp_path / "mail")]) == 0
    assert capsys.readouterr().out.startswith("0 learned, 0 known already, 1 skipped")
    assert counts(rspamd, user) == (0, 0)


def test_a_large_message_with_any_bytes(
    rspamd: Rspamd, flags: list[str], user: str, tmp_path: Path, capsys: Capture
) -> None:
    data = mail("large", "spam") + bytes(range(256)) * 20_000
    (tmp_path / "mail").write_bytes(data)
    assert main(["learn", "spam", *flags, str(tmp_path / "mail")]) == 0
    assert capsys.readouterr().out.startswith("1 learned")
    assert counts(rspamd, user, (1, 0)) == (1, 0)


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_wrong_password(
    rspamd: Rspamd, user: str, password: str | None, tmp_path: Path, capsys: Capture
) -> None:
    words = ["learn", "spam", "-url", rspamd.controller_url, "--user", user]
    if password is not None:
        (tmp_path / "password").write_text(password)
        words += ["--password-file", str(tmp_path / "password")]
    (tmp_path / "mail").write_bytes(mail("password", "spam"))
    assert main([*words, str(tmp_path / "mail")]) == 77
    assert "wrong password (status 401: " in capsys.readouterr().err
    assert counts(rspamd, user) == (0, 0)


def test_a_worker_that_is_no_controller(
    rspamd: Rspamd, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mail").write_bytes(mail("worker", "spam"))
    assert main(["learn", "spam", *flags, "-url", rspamd.url, str(tmp_path / "mail")]) == 75
    assert "invalid command" in capsys.readouterr().err


def test_a_controller_that_goes_away(flags: list[str], tmp_path: Path, capsys: Capture) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    (tmp_path / "mail").write_bytes(mail("away", "spam"))
    with Rspamd(zone={}) as daemon:
        words = ["learn", "spam", *flags, "-url", daemon.controller_url, str(tmp_path / "mail")]
        daemon.stop()
        assert main(words) == 75
        assert "Connection refused" in capsys.readouterr().err
        daemon.start()
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("1 learned")


def test_a_controller_without_its_redis(flags: list[str], tmp_path: Path, capsys: Capture) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    (tmp_path / "mail").write_bytes(mail("redis", "spam"))
    # It says that it has learned the message before.
    local = {"redis.conf": f'servers = "{tmp_path}/none";'}
    with Rspamd(zone={}, redis=False, local=local) as daemon:
        words = ["learn", "spam", *flags, "-url", daemon.controller_url, str(tmp_path / "mail")]
        assert main(words) == 75
        assert "status 404: " in capsys.readouterr().err
