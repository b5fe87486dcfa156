"""`smtpd-filters learn` with the real rspamd and its Redis: what is learned is learned."""

from __future__ import annotations

import re
import subprocess
import sys
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import main
from smtpd_filters.testing.rspamd.daemon import Rspamd, unavailable
from tests.e2e.learning import BAYES, ask, counts, known, mail, total
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

TOOL = [sys.executable, "-c", "import sys; from smtpd_filters.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Rspamd]:
    need(unavailable())
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
    deadline = monotonic() + 60
    while known(rspamd) == remembered:
        assert monotonic() < deadline
    # Once more is no failure, and learns nothing.
    assert main(["learn", "spam", *flags, str(path)]) == 0
    assert capsys.readouterr().out.startswith("0 learned, 1 known")
    # The other way it is unlearned and learned.
    assert main(["learn", "ham", *flags, str(path)]) == 0
    assert capsys.readouterr().out.startswith("1 learned, 0 known")
    assert counts(rspamd, user, (0, 1)) == (0, 1)


def test_what_was_learned_applies_to_new_mail(
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


@pytest.mark.parametrize("redis", ["%s/none", "127.0.0.1:1"])
def test_a_controller_without_its_redis(
    flags: list[str], tmp_path: Path, capsys: Capture, redis: str
) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    (tmp_path / "mail").write_bytes(mail("redis", "spam"))
    local = {"redis.conf": f'servers = "{redis.replace("%s", str(tmp_path))}";'}
    with Rspamd(zone={}, redis=False, local=local) as daemon:
        words = ["learn", "spam", *flags, "-url", daemon.controller_url, str(tmp_path / "mail")]
        assert main(words) == 75
        said = capsys.readouterr().err
        # Rspamd 3.4's, which says that it has learned the message before, and 3.12's.
        assert re.search("status (1|404|500): ", said)
        assert said.endswith("; rspamd probably can't reach its Redis: see its log\n")
