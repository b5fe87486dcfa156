"""Files that options name are read at start: whatever they are, it ends with one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds for a start that must not wait for anything.
PATIENCE = 60.0
#: Programs, and options that name a file.
NAMED = [
    ("filters.content", ("--rules", "FILE")),
    ("filters.content", ("--header-checks", "regexp:FILE")),
    ("filters.greylist", ("--store", "rediss://localhost", "--store-password-file", "FILE")),
    ("filters.greylist", ("--store", "rediss://localhost", "--store-ca-file", "FILE")),
    ("filters.rspamd", ("--password-file", "FILE")),
    ("filters.dkimsign", ("-d", "example.org", "-s", "x", "-k", "FILE")),
    ("filters.mailfrom", ("--domains", "FILE")),
    ("cli.chain", ("--config", "FILE")),
    ("cli", ("web", "--passwords", "FILE")),
    ("cli", ("web", "--metrics-token", "FILE")),
    ("cli", ("check", "--config", "FILE")),
    ("cli", ("check", "--chains", "FILE")),
]


def made(kind: str, folder: Path) -> str:
    """Make a file of this kind; return its path."""
    path = folder / kind
    match kind:
        case "fifo":
            os.mkfifo(path, 0o600)
        case "directory":
            path.mkdir()
        case "large":
            with path.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.truncate(1 << 30)
        case "zero":
            return "/dev/zero"
        case "loop":
            path.symlink_to(path)
    return str(path)


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["fifo", "directory", "large", "zero", "loop", "missing"])
@pytest.mark.parametrize(("module", "flags"), NAMED, ids=lambda each: str(each)[:40])
def test_a_file_that_is_none(
    module: str, flags: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    path = made(kind, tmp_path)
    words = [each.replace("FILE", path) for each in flags]
    start = f"import sys; from smtpd_filters.{module} import main; sys.exit(main())"
    limited = f"ulimit -v 2000000; exec {sys.executable} -c '{start}' \"$@\""
    ended = subprocess.run(
        ["/bin/sh", "-c", limited, "sh", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = (ended.stderr + ended.stdout).splitlines()
    assert ended.returncode in {1, 2}, said
    assert path in "".join(said), said
    assert "Traceback" not in ended.stderr
    if flags[0] != "check":
        assert len(said) == 1, said
        # That of a chain has no other flag with a file.
        assert flags[-2] in said[0] or module == "cli.chain", said
