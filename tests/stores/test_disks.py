"""A store on a disk that is full, or mounted read-only, and usable again later."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from smtpd_filters.errors import UnavailableError
from smtpd_filters.stores import Get, Put, join
from smtpd_filters.stores.sqlite import SQLiteStore
from tests.needed import need
from tests.stores.conftest import PATIENCE

pytestmark = pytest.mark.e2e
UNSHARE = shutil.which("unshare") or ""
LARGE = b"v" * 4000


@pytest.mark.parametrize("what", ["full", "file size", "inodes", "read-only"])
def test_a_disk_that_fails_costs_an_error_and_no_restart(what: str, tmp_path: Path) -> None:
    need(None if os.geteuid() == 0 and UNSHARE else "needs root and unshare")
    done = subprocess.run(
        [
            UNSHARE,
            "--mount",
            sys.executable,
            "-m",
            "tests.stores.test_disks",
            what,
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "recovered\n", "")


async def cause(store: SQLiteStore) -> str:
    """Write until the store fails; return why."""
    for number in range(1000):
        try:
            await store.ask(Put(join("t", b"%d" % number), LARGE, ttl=900))
        except UnavailableError as error:
            return str(error).rpartition(": ")[2]
    return ""


async def full(folder: Path) -> None:
    notes: list[str] = []
    store = SQLiteStore(f"{folder}/store.sqlite", timeout=PATIENCE, note=notes.append)
    filler = folder / "filler"
    filler.write_bytes(bytes(300_000))
    assert await cause(store) == "disk full"
    assert await store.ask(Get(join("t", b"0"))) is not None
    assert notes == []
    filler.unlink()
    await store.ask(Put(join("t", b"after"), LARGE, ttl=900))
    assert notes == [f"{store.label}: answers again"]
    await store.aclose()


async def file_size(folder: Path) -> None:
    """A limit of file sizes is, for SQLite, an error like that of a disk quota."""
    notes: list[str] = []
    store = SQLiteStore(f"{folder}/store.sqlite", timeout=PATIENCE, note=notes.append)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    assert await cause(store) == "cannot be written (disk quota, limit of file sizes, faulty disk)"
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await store.ask(Put(join("t", b"after"), LARGE, ttl=900))
    assert notes == [f"{store.label}: answers again"]
    await store.aclose()


async def inodes(folder: Path) -> None:
    """A filter that starts now has to create the files beside that of the store."""
    store = SQLiteStore(f"{folder}/store.sqlite", timeout=PATIENCE, note=sys.stdout.write)
    await store.ask(Put(join("t", b"0"), LARGE, ttl=900))
    await store.aclose()
    fillers = use_inodes(folder)
    notes: list[str] = []
    again = SQLiteStore(f"{folder}/store.sqlite", timeout=PATIENCE, note=notes.append)
    assert await cause(again) == "no free inodes"
    assert len(notes) == 1
    for filler in fillers:
        filler.unlink()
    await again.ask(Put(join("t", b"0"), LARGE, ttl=900))
    assert notes[1:] == [f"{again.label}: answers again"]
    await again.aclose()


def use_inodes(folder: Path) -> list[Path]:
    """Create files until none can be created; return them."""
    fillers: list[Path] = []
    with suppress(OSError):
        while True:
            filler = folder / f"filler-{len(fillers)}"
            filler.touch()
            fillers.append(filler)
    return fillers


async def read_only(folder: Path) -> None:
    store = SQLiteStore(f"{folder}/store.sqlite", timeout=PATIENCE, note=sys.stdout.write)
    await store.ask(Put(join("t", b"0"), LARGE, ttl=900))
    await store.aclose()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)  # noqa: ASYNC221, S607
    notes: list[str] = []
    # A filter that starts now: smtpd would not start without it.
    again = SQLiteStore(f"{folder}/store.sqlite", timeout=PATIENCE, note=notes.append)
    assert await cause(again) == "read-only"
    assert len(notes) == 1
    # `smtpd-filters check` starts it as well, and its `--online` has the reason.
    looked: list[str] = []
    look = SQLiteStore(f"{folder}/store.sqlite", timeout=PATIENCE, note=looked.append, check=True)
    assert looked == [f"{again.label}: read-only"]
    assert look.fault() == "read-only"
    await look.aclose()
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)  # noqa: ASYNC221, S607
    await again.ask(Put(join("t", b"0"), LARGE, ttl=900))
    assert notes[1:] == [f"{again.label}: answers again"]
    await again.aclose()


async def main(what: str, folder: Path) -> None:
    """Mount a small file system, have a store on it fail, and use it again."""
    subprocess.run(  # noqa: ASYNC221
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "tmpfs", str(folder)],  # noqa: S607
        check=True,
    )
    faults = {"full": full, "file size": file_size, "inodes": inodes, "read-only": read_only}
    await faults[what](folder)
    sys.stdout.write("recovered\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
