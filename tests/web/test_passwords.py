from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.cli.web import _reload
from smtpd_filters.errors import ConfigError
from smtpd_filters.web.guard import Access
from smtpd_filters.web.passwords import QUEUE, USUAL, BusyError, Hash, Passwords, Work, with_user
from tests.effort import part

LITTLE = Work(2, 8, 1)
CHEAP = "scrypt$2$1$1$AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


def check(path: Path, user: str, password: str) -> bool:
    return asyncio.run(Passwords.read(str(path)).check(user, password))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_of_another_user_names_the_remedy() -> None:
    # Not in `tmp_path`, which other users may not enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = f"{folder}/users"
        with_user(path, "ann", "wonder", LITTLE)
        os.seteuid(65534)
        try:
            with pytest.raises(ConfigError, match=r"users: Permission denied .*chmod 0640"):
                Passwords.read(path)
            with pytest.raises(ConfigError, match=r"missing: No such file or directory$"):
                Passwords.read(f"{folder}/missing")
        finally:
            os.seteuid(0)


def test_a_user_is_added_and_changed(path: Path) -> None:
    with_user(str(path), "ann", "wonder", LITTLE)
    with_user(str(path), "bob", "builder", LITTLE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert check(path, "ann", "wonder")
    assert not check(path, "ann", "builder")
    assert not check(path, "eve", "wonder")
    path.chmod(0o640)
    with_user(str(path), "ann", "other", LITTLE)
    assert check(path, "ann", "other")
    assert not check(path, "ann", "wonder")
    assert check(path, "bob", "builder")
    assert path.stat().st_mode & 0o777 == 0o640


def test_no_file_is_in_the_way_of_the_new_file(path: Path) -> None:
    os.mkfifo(f"{path}.new")  # to open it would wait
    with_user(str(path), "ann", "wonder", LITTLE)
    assert check(path, "ann", "wonder")
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, f"{path.name}.new"]


def test_an_unknown_user_takes_as_much_work_as_the_most_of_a_known_one(path: Path) -> None:
    assert Passwords({})._nobody[:3] == USUAL
    with_user(str(path), "ann", "wonder", LITTLE)
    known = Passwords.read(str(path))
    assert known._nobody[:3] == LITTLE
    more = Work(4, 8, 2)
    with_user(str(path), "bob", "builder", more)
    with_user(str(path), "eve", "apple", LITTLE)
    known.reload()
    assert known._nobody[:3] == more


def test_the_password_is_not_in_the_file(path: Path) -> None:
    with_user(str(path), "ann", "wonder", LITTLE)
    assert "wonder" not in path.read_text()
    assert path.read_text().startswith("ann:scrypt$2$8$1$")


@pytest.mark.parametrize("user", ["", "a:b", "a\nb", "-x", "ä", "x" * 65])
def test_names_that_no_user_has(path: Path, user: str) -> None:
    with pytest.raises(ConfigError, match="USER"):
        with_user(str(path), user, "wonder", LITTLE)
    assert not path.exists()


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "mail" / "passwords"
    with pytest.raises(ConfigError) as raised:
        with_user(str(path), "ann", "wonder", LITTLE)
    missing = f"No such file or directory (make the directory {path.parent} first)"
    assert str(raised.value) == f"{path}: {missing}"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "no user; add one with smtpd-filters web password USER"),
        ("ann\n", "1: expected USER:HASH"),
        (f"# users\n\nann:{CHEAP}\nann:{CHEAP}\n", "4: a second line for ann"),
        ("ann:$apr1$x$y\n", "1: expected scrypt$N$r$p$SALT$DIGEST"),
        ("ann:wonder\n", "1: expected scrypt$N$r$p$SALT$DIGEST"),
        ("ann:scrypt$2$8$1\n", "1: expected scrypt$N$r$p$SALT$DIGEST"),
        (f"ann:{CHEAP.replace('$2$', '$3$')}\n", "1: N must be a power of 2 up to 131072"),
        (f"ann:{CHEAP.replace('$2$', '$262144$')}\n", "1: N must be a power of 2 up to 131072"),
        (f"ann:{CHEAP.replace('$2$', '$x$')}\n", "1: N, r and p must be numbers"),
        (f"ann:{CHEAP.replace('$1$1$', '$1$99$')}\n", "1: p must be at most 16"),
        (f"ann:{CHEAP.replace('$2$', '$' + '9' * 5000 + '$')}\n", "1: N, r and p must be numbers"),
        ("ann:scrypt$2$1$1$!$!\n", "1: salt and digest must be base64"),
        ("ann:scrypt$2$1$1$AAAA$AAAA\n", "1: salt and digest must have 8 to 64 bytes"),
    ],
)
def test_files_with_mistakes(path: Path, text: str, error: str) -> None:
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as raised:
        Passwords.read(str(path))
    assert str(raised.value).removeprefix(f"{path}:").strip().startswith(error)


def test_a_mistake_keeps_the_users(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_user(str(path), "ann", "wonder", LITTLE)
    access = Access(passwords=Passwords.read(str(path)))
    assert access.passwords is not None
    _reload(access)
    path.write_text("ann\n")
    _reload(access)
    assert "ann" in access.passwords
    path.unlink()
    _reload(access)
    assert "ann" in access.passwords
    _reload(Access())
    assert capsys.readouterr().err == (
        f"smtpd-filters web: reloaded {path}: 1 user\n"
        f"smtpd-filters web: not reloaded, the users stay: {path}:1: expected USER:HASH\n"
        f"smtpd-filters web: not reloaded, the users stay: {path}: No such file or directory\n"
    )


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602])
def test_a_file_that_others_may_read(path: Path, mode: int) -> None:
    path.write_text(f"ann:{CHEAP}\n")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 0640"):
        Passwords.read(str(path))


@settings(max_examples=part(300), deadline=None)
@given(st.text())
def test_a_hash_is_parsed_or_refused(text: str) -> None:
    for each in (text, f"scrypt${text}", CHEAP + text):
        try:
            parsed = Hash.parse(each)
        except ValueError:
            continue
        assert Hash.parse(str(parsed)) == parsed


@settings(max_examples=part(50), deadline=None)
@given(st.text(max_size=50))
def test_any_text_is_a_password(text: str) -> None:
    assert Hash.of(text, LITTLE).fits(text)
    assert not Hash.of(text, LITTLE).fits(text + "x")


def test_only_so_many_wait(path: Path) -> None:
    with_user(str(path), "ann", "wonder", LITTLE)

    async def run() -> list[object]:
        users = Passwords.read(str(path))
        async with users._turn:
            tries = [asyncio.ensure_future(users.check("ann", "x")) for _ in range(QUEUE + 2)]
            await asyncio.sleep(0)  # all have begun
        return await asyncio.gather(*tries, return_exceptions=True)

    results = asyncio.run(run())
    assert [type(each) for each in results].count(BusyError) == 2
    assert results.count(False) == QUEUE
