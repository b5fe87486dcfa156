"""The cost of filter-content for each megabyte of mail, beside that of other readers.

    python -m tests.bench.run --only content

Ours is the processor time of the filter's process, protocol included, less that of a filter that
takes the whole message and does nothing. The others are the standard library's parser, which has
the message in memory, and Postfix's header, MIME and body checks: postmap(1) reads a message as
cleanup(8) does and asks the tables about its lines. Its package is unpacked, not installed, since
that would remove smtpd.
"""

from __future__ import annotations

import base64
import os
import random
import resource
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.bench.mime import compat32, spent
from tests.bench.player import ROOT, Player
from tests.bench.workloads import sessions

if TYPE_CHECKING:
    from pathlib import Path

MB = 1 << 20
FOLDER = ROOT / "build" / "postfix"
#: What Postfix's documentation and many servers have as body checks: names and beginnings of
#: programs. The filter has the list of dangerous attachments.
EXTENSIONS = ("exe", "scr", "pif", "bat", "com", "vbs", "js")
CHECKS = "".join(f"/^(.*)(name|filename)=.*\\.({each})/ REJECT\n" for each in EXTENSIONS) + (
    "/^TVqQAAMAAAAEAAAA/ REJECT program\n/^begin [0-7]+ .*\\.exe/ REJECT\n"
)
#: Postfix's owner and group must be others than root's and each other's.
MAIN_CF = "compatibility_level = 3.6\nmail_owner = nobody\nsetgid_group = operator\n"


def mail(size: int) -> bytes:
    """Return a message of about this size: a third of it text, the rest an attachment."""
    noise = random.Random(1)  # noqa: S311  # the same in every run
    text = b"We lost the game. Are you hungry yet? It is late, and the shops are closed.\n"
    data = base64.encodebytes(noise.randbytes(size // 2))
    return (
        b"From: alice@example.net\nContent-Type: multipart/mixed; boundary=b\n\n--b\n"
        b"Content-Type: text/plain\n\n" + text * (size // 3 // len(text)) + b"--b\n"
        b"Content-Type: image/jpeg; name=a.jpg\nContent-Transfer-Encoding: base64\n\n"
        + data + b"--b--\n"
    )  # fmt: skip


def measure(size: int, count: int) -> dict[str, dict[str, float]]:
    """Return milliseconds of processor time for each MB, in one round; Postfix's if it is there."""
    message = mail(size)
    lines = [*message.split(b"\n")[:-1], b"."]
    megabytes = len(message) / MB
    costs = {
        name: _filter(command, lines, count)
        for name, command in {
            "ours": [sys.executable, "-m", "smtpd_filters.filters.content"],
            "a filter that only takes it": [
                *(sys.executable, "-m", "smtpd_filters.filters.content", "--exempt", "::/0"),
            ],
        }.items()
    }
    costs["ours alone"] = costs["ours"] - costs["a filter that only takes it"]
    costs["email"] = spent(compat32, message)
    if (program := postmap()) is not None:
        costs["Postfix's checks"] = _postfix(program, message)
    return {name: {"ms/MB": cost * 1000 / megabytes} for name, cost in costs.items()}


def _filter(command: list[str], lines: list[bytes], count: int) -> float:
    with Player(command) as player:
        sessions(player, max(2, count // 5), 2, lines)  # warm
        return sessions(player, count, 2, lines).cost / 1e6


def postmap() -> list[str] | None:
    """Return the command of Postfix's postmap; None if its package can't be had."""
    if not (FOLDER / "root").exists():
        apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
        if apt is None or dpkg is None:
            return None
        FOLDER.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [apt, "-qq", "download", "postfix"], cwd=FOLDER, check=False, capture_output=True
        )
        package = next(FOLDER.glob("postfix_*.deb"), None)
        if done.returncode or package is None:
            return None
        subprocess.run([dpkg, "-x", package, FOLDER / "root"], check=True)
    (FOLDER / "main.cf").write_text(MAIN_CF)
    (FOLDER / "checks").write_text(CHECKS)
    program = FOLDER / "root" / "usr" / "sbin" / "postmap"
    table = f"regexp:{FOLDER / 'checks'}"
    return [str(program), "-c", str(FOLDER), "-hmbq", "-", table]


def _postfix(command: list[str], message: bytes) -> float:
    libraries: Path = FOLDER / "root" / "usr" / "lib" / "postfix"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            command, input=message, env=environment, capture_output=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # 1: no line has matched.
        if done.returncode != 1 or done.stdout:
            raise RuntimeError(done.stderr.decode("utf-8", "replace"))
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))
