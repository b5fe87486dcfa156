"""A journal that starts on a disk without free inodes, or mounted read-only, and usable later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.journal.archive import PAUSE, Archive
from smtpd_filters.journal.privacy import Privacy
from smtpd_filters.journal.service import Service
from tests.needed import need
from tests.stores.test_disks import use_inodes

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.e2e
UNSHARE = shutil.which("unshare") or ""
#: Far later than any file of the test, whose days are in the past.
LATER = 4e9


@pytest.mark.parametrize("fault", ["inodes", "one inode", "read-only"])
def test_it_starts_and_writes_once_the_disk_is_usable(fault: str, tmp_path: Path) -> None:
    need(None if os.geteuid() == 0 and UNSHARE else "needs root and unshare")
    done = subprocess.run(
        [UNSHARE, "--mount", sys.executable, "-m", __name__, fault, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "writes again\n", "")


def start(disk: Path, reason: str, mend: Callable[[], object]) -> None:
    """Start a journal as often as its service does, and mend the disk."""
    notes: list[str] = []
    for _ in range(2):
        archive = archive_in(disk, notes)
        service = Service(archive, f"{disk.parent}/socket", group=None, note=notes.append)
        service.open()
        assert len(notes) == 1
        assert notes.pop().endswith(f": not written: {reason}; mail is not affected")
        service.close()
    archive = archive_in(disk, notes)
    archive.open(LATER)
    assert not archive.write([], LATER + PAUSE)
    mend()
    assert archive.write([], LATER + 3 * PAUSE)
    assert notes[1:] == ["writing again; 0 stories were lost"]
    archive.close()


def archive_in(disk: Path, notes: list[str]) -> Archive:
    """Return the files of a journal."""
    return Archive(
        str(disk),
        Privacy("plain"),
        days=30,
        size=1 << 30,
        floor=0,
        subjects=False,
        note=notes.append,
    )


def main(fault: str, folder: Path) -> None:
    """Mount a small disk with the journal of another day, and start the journal on it."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o")
    subprocess.run([*mount, "size=8m,nr_inodes=32", "tmpfs", str(disk)], check=True)
    (disk / "lock").touch()
    remount = (*mount[:1], "-o")
    if fault == "read-only":
        subprocess.run([*remount, "remount,ro", str(disk)], check=True)
        start(
            disk,
            "Read-only file system",
            lambda: subprocess.run([*remount, "remount,rw", str(disk)], check=True),
        )
    else:
        fillers = use_inodes(disk)
        if fault == "one inode":
            fillers.pop().unlink()
        start(
            disk,
            "No space left on device" if fault == "inodes" else "no free inodes",
            lambda: list(map(Path.unlink, fillers)),
        )
    sys.stdout.write("writes again\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
