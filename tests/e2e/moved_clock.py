"""A clock that stands still until a test moves it on, for filters, the journal and its page.

libfaketime reads the time from a file at each look at the clock. The file is below the checkout,
which the sandbox of a filter leaves readable. smtpd keeps the true clock: most of its processes
have another root directory, without the file. So do filters whose C library is too old for the
machine's libfaketime; the journal doesn't believe such a clock, and dates their stories itself.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from smtpd_filters.testing.server import CODE
from tests.data import ROOT
from tests.needed import need

#: Where a lab has the library, and its variant for threads: with the other one the true time shows
#: now and then while Python's threads wait for each other.
LIBRARY, NAME = "/srv/faketime", "libfaketimeMT.so.1"
BUILD = ROOT / "build"


class MovedClock:
    """A context manager for the clock and its file; the time is in seconds since 1970.

    `binds` is for a server's lab, `ahead` is put ahead of the command line of a filter there, and
    `environment` is that of processes outside of labs.
    """

    def __init__(self, now: float) -> None:
        found = next(Path("/usr/lib").glob(f"*/faketime/{NAME}"), None)
        need("not installed: libfaketime" if found is None else None)
        assert found is not None
        BUILD.mkdir(exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="clock-", dir=BUILD)
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        self._file = folder / "now"
        # Without shared memory it works as well, and leaves nothing of killed processes behind.
        (folder / "shm").mkdir()
        self.binds = {LIBRARY: found.parent, "/dev/shm": folder / "shm"}  # noqa: S108  # a mount point
        inside = f"{CODE}/{self._file.relative_to(ROOT)}"
        moved = (f"{key}={value}" for key, value in _variables(f"{LIBRARY}/{NAME}", inside).items())
        self.ahead = f"{shlex.join(['/usr/bin/env', *moved])} "
        # FAKETIME, of a faketime(1) around this process, would take precedence over the file.
        kept = {key: each for key, each in os.environ.items() if not key.startswith("FAKETIME")}
        self.environment = {**kept, **_variables(str(found), str(self._file))}
        self.move(now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def move(self, now: float) -> None:
        """Move the clock to this time, for all its processes at once."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S}\n")
        new.replace(self._file)


def _variables(library: str, file: str) -> dict[str, str]:
    """Return the variables for libfaketime; deadlines and the times of files stay true."""
    return {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": file,
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        "TZ": "UTC",
    }
