"""A store in a directory that its group shares: a filter and the page, as two users."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
#: The user and group of filters, and the user of the page, who is a member of that group.
FILTER, PAGE = 64101, 64102
#: Other users may not be allowed to enter the checkout, as below /root: it is bound to /mnt.
AS_USER = """
mount --bind "$1" /mnt
umask 027
user=$2 group=$3
shift 3
exec setpriv --reuid "$user" --regid "$user" --groups "$group" "$@"
"""
ASK = """
import asyncio, sys
sys.path[:0] = {path!r}
from smtpd_filters.stores import Add, Get, join
from smtpd_filters.stores.sqlite import SQLiteStore

async def run():
    store = SQLiteStore(sys.argv[1], timeout=30, note=print)
    for key in sys.argv[2:]:
        found = await store.ask(Add(join("x", key.encode()), b"v", ttl=3600))
        print(key, "added" if found is None else "known")
    await store.aclose()

asyncio.run(run())
"""
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def directory() -> Iterator[Path]:
    # Other users may not enter the directories of tests.
    with TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        shared = Path(place, "state")
        shared.mkdir()
        os.chown(shared, FILTER, FILTER)
        yield shared


def inside(path: str) -> str:
    """Return a path in the checkout as the process has it."""
    return f"/mnt/{Path(path).relative_to(ROOT)}" if Path(path).is_relative_to(ROOT) else path


def as_user(user: int, code: str, *words: str) -> list[str]:
    """Return the command that runs Python code as a user of the filters' group."""
    drop = ["unshare", "--mount", "sh", "-ec", AS_USER, "sh", str(ROOT), str(user), str(FILTER)]
    return [*drop, inside(sys.executable), "-c", code, *words]


PATHS = ["/mnt", *(inside(each) for each in sys.path if "site-packages" in each)]


def ask(user: int, path: Path, *keys: str) -> str:
    """Use the store as a user of the filters' group; return what it says."""
    ran = subprocess.run(
        as_user(user, ASK.format(path=PATHS), str(path), *keys),
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    return ran.stdout + ran.stderr[-300:]


@pytest.mark.parametrize("first", [FILTER, PAGE])
def test_a_filter_and_the_page_use_the_same_file(directory: Path, first: int) -> None:
    directory.chmod(0o2770)
    path = directory / "greylist.sqlite"
    users = [first, FILTER + PAGE - first]
    # Each makes the files beside it again, which the other must be able to use.
    for number in range(4):
        known = "".join(f"{each} known\n" for each in range(number))
        keys = [str(each) for each in range(number + 1)]
        assert ask(users[number % 2], path, *keys) == f"{known}{number} added\n"
    found = path.stat()
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (FILTER, 0o660)


def test_without_that_the_file_is_its_owners(directory: Path) -> None:
    directory.chmod(0o750)
    path = directory / "greylist.sqlite"
    assert ask(FILTER, path, "1") == "1 added\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert "may not write" in ask(PAGE, path, "1")


def test_the_page_shows_it_under_its_own_user(directory: Path) -> None:
    directory.chmod(0o2770)
    path = directory / "greylist.sqlite"
    assert ask(FILTER, path, "1") == "1 added\n"
    own = directory.with_name("page")
    own.mkdir()
    os.chown(own, PAGE, PAGE)
    served = own / "socket"
    start = "from smtpd_filters.cli import main; sys.exit(main())"
    page = subprocess.Popen(
        as_user(
            PAGE,
            f"import sys; sys.path[:0] = {PATHS!r}; {start}",
            *("web", "--listen", str(served), "--directory", str(own), "--proxy", "unix"),
            *("--user-header", "X-User", "--greylist", f"sqlite:{path}"),
        ),
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    try:
        assert page.stderr is not None
        first = page.stderr.readline()
        assert "ready" in first, first + page.stderr.read(3000)
        with socket.socket(socket.AF_UNIX) as browser:
            browser.settimeout(60)
            browser.connect(str(served))
            browser.sendall(
                b"GET /greylist HTTP/1.1\r\nHost: localhost\r\nX-User: ann\r\n"
                b"Connection: close\r\n\r\n"
            )
            reply = b"".join(iter(lambda: browser.recv(1 << 16), b""))
    finally:
        page.terminate()
        page.communicate()
    assert reply.startswith(b"HTTP/1.1 200 "), reply[:300]
    assert b"Greylist" in reply
    # Filters go on with it.
    assert ask(FILTER, path, "1", "2") == "1 known\n2 added\n"
