"""Filters whose store is on a disk that is full, or mounted read-only, and usable again later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from smtpd_filters.filters.correspondents import CorrespondentsFilter
from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.filters.limit import Limit
from smtpd_filters.testing import Conversation
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.filter import Filter

pytestmark = pytest.mark.e2e
UNSHARE = shutil.which("unshare") or ""
ROOT = Path(__file__).parents[2]
#: Subjects that find room in what is left of a file, at most.
SUBJECTS = 2000


def greylisted(smtpd: Conversation, name: str) -> bool:
    """Return whether a recipient's first message is refused."""
    client = smtpd.connect()
    client.ehlo("mail.example.com")
    client.mail_from("anna@example.org")
    return client.rcpt_to(f"{name}@example.net").verb == "reject"


def limited(smtpd: Conversation, name: str) -> bool:
    """Return whether a sender's second message is refused, where one is allowed."""
    client = smtpd.connect()
    client.ehlo("mail.example.com")
    verbs = []
    for _ in range(2):
        verbs.append(client.mail_from(f"{name}@example.org").verb)
        if verbs[-1] == "proceed":
            client.rcpt_to("you@example.net")
            client.message()
    assert verbs[0] == "proceed"
    return verbs[1] == "reject"


def learnt(smtpd: Conversation, name: str) -> bool:
    """Return whether one to whom a user writes is known afterwards."""
    user = smtpd.connect()
    user.ehlo("mail.example.com")
    user.auth("alice", "secret")
    assert user.mail_from("alice@example.org").verb == "proceed"
    assert user.rcpt_to(f"{name}@example.net").verb == "proceed"
    assert user.message().verb == "proceed"
    user.quit()
    friend = smtpd.connect()
    friend.ehlo("mail.example.com")
    assert friend.mail_from(f"{name}@example.net").verb == "proceed"
    before = len(smtpd.log)
    assert friend.rcpt_to("alice@example.org").verb == "proceed"
    return any("points=" in line for line in smtpd.log[before:])


class Case(NamedTuple):
    """A filter, its flags, and a question that is true while it remembers."""

    filter: type[Filter]
    flags: tuple[str, ...]
    remembers: Callable[[Conversation, str], bool]


CASES = {
    "greylist": Case(Greylist, ("--key", "network"), greylisted),
    "limit": Case(Limit, ("--limit", "sender messages 1/1h"), limited),
    "correspondents": Case(CorrespondentsFilter, (), learnt),
}


@pytest.mark.parametrize("fault", ["full", "read_only"])
@pytest.mark.parametrize("name", CASES)
def test_mail_passes_and_the_filter_remembers_again_afterwards(
    name: str, fault: str, tmp_path: Path
) -> None:
    need(None if os.geteuid() == 0 and UNSHARE else "needs root and unshare")
    done = subprocess.run(
        [UNSHARE, "--mount", sys.executable, "-m", __name__, name, fault, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "remembers\n", "")


def full(folder: Path, case: Case) -> None:
    """Fill the disk, and empty it, while the filter works."""
    filler = folder / "filler"
    with Conversation(case.filter, *case.flags, *store(folder)) as smtpd:
        assert case.remembers(smtpd, "first")
        with filler.open("wb", 0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        names = (f"{'x' * 50}-{number}" for number in range(SUBJECTS))
        assert not all(case.remembers(smtpd, name) for name in names)
        assert any("disk full" in line for line in smtpd.log), smtpd.log[-4:]
        filler.unlink()
        assert case.remembers(smtpd, "afterwards")


def read_only(folder: Path, case: Case) -> None:
    """Start the filter on a disk that is mounted read-only, and mount it for writing later."""
    with Conversation(case.filter, *case.flags, *store(folder)) as smtpd:
        assert case.remembers(smtpd, "first")
    remount(folder, "ro")
    with Conversation(case.filter, *case.flags, *store(folder)) as smtpd:
        assert not case.remembers(smtpd, "second")
        assert any("read-only" in line for line in smtpd.log), smtpd.log
        remount(folder, "rw")
        assert case.remembers(smtpd, "second")


def store(folder: Path) -> tuple[str, ...]:
    """Return the flags of a store with a deadline that a busy machine keeps."""
    return "--store", f"sqlite:{folder}/x", "--store-timeout", "60"


def remount(folder: Path, how: str) -> None:
    """Mount the disk read-only or for writing."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)  # noqa: S607


def main(name: str, fault: str, folder: Path) -> None:
    """Mount a small disk, and let the filter work on it."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],  # noqa: S607
        check=True,
    )
    {"full": full, "read_only": read_only}[fault](folder, CASES[name])
    sys.stdout.write("remembers\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
