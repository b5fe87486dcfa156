"""Every executable for smtpd, with few or closed descriptors: it serves, or ends with one line."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest

from smtpd_filters.authentication.dkim.keys import ED25519
from smtpd_filters.authentication.dkim.private_keys import new_private_key
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from tests.effort import some
from tests.runtime.process import PATIENCE

ROOT = Path(__file__).parent.parent
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
NAMES = [name for name in SCRIPTS if name.startswith("filter-")]
#: As packaged executables start: without the module site, which needs descriptors of its own.
START = (
    f"import sys; sys.path += {[str(ROOT), *sys.path[1:]]!r}; "
    "from importlib import import_module; "
    "module, _, name = sys.argv.pop(1).partition(':'); sys.argv[0] = sys.argv.pop(1); "
    "sys.exit(getattr(import_module(module), name)())"
)
#: Flags without which an executable does not serve, or opens less than it usually does.
FLAGS = {
    "filter-chain": ["--config", "FOLDER/chain.toml"],
    "filter-clamav": ["--clamd", "/nonexistent"],
    "filter-correspondents": ["--store", "sqlite:FOLDER/correspondents"],
    "filter-dkimsign": ["-d", "example.org", "-s", "test", "-k", "FOLDER/key"],
    "filter-dnsbl": ["--client", "bl.example", "--nameserver", "127.0.0.1:9"],
    "filter-greylist": ["--store", "sqlite:FOLDER/greylist"],
    "filter-limit": ["--limit", "client connections 9/1h", "--store", "sqlite:FOLDER/limit"],
    "filter-mailfrom": ["--domains", "example.org"],
    "filter-milter": ["--milter", "inet:9@127.0.0.1"],
    "filter-policy": ["--server", "127.0.0.1:9"],
    "filter-rewrite": ["--canonical", "{ a@b.example = c@d.example }"],
    "filter-senderscore": ["-junkBelow", "50", "--nameserver", "127.0.0.1:9"],
    "filter-supervise": ["cat"],
    "filter-tls": ["--require", "any"],
    "filter-trace": ["--record", "FOLDER"],
}
#: What the log has before the line by which an executable ends.
NOTES = re.compile(r"(journal|milter) not reached |[a-z]+ sqlite:[^ ]+: cannot be opened$")
CHAIN = '[chain.all]\nfilters = ["dyndns", "greylist"]\n[filter.greylist]\nstore = "memory:"\n'


def started(name: str, folder: Path, shell: str, *flags: str) -> tuple[int, bool, list[str]]:
    """Start it with a line of the shell, and end its input when it is ready.

    Return its exit status, whether it was ready, and the lines on stderr.
    """
    own = [word.replace("FOLDER", str(folder)) for word in FLAGS.get(name, [])]
    command = [sys.executable, "-IS", "-c", START, SCRIPTS[name], name, *flags, *own]
    with subprocess.Popen(
        ["/bin/sh", "-c", shell, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        # Reading ends when the program does.
        late = threading.Timer(PATIENCE, process.kill)
        late.start()
        with suppress(BrokenPipeError):
            process.stdin.write(SmtpdConnection().configure())
            process.stdin.flush()
        written = b""
        while not written.endswith(b"register|ready\n") and (line := process.stdout.readline()):
            written += line
        with suppress(BrokenPipeError):
            process.stdin.close()
        logged = process.stderr.read().decode()
        status = process.wait(PATIENCE)
        late.cancel()
        late.join()
    ready = written.endswith(b"register|ready\n")
    assert ready or not written, written
    return status, ready, logged.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(new_private_key(ED25519, 0))
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "chain.toml").write_text(CHAIN)
    return tmp_path


@pytest.mark.parametrize("flags", [[], ["--journal", "/nonexistent"]], ids=["plain", "journal"])
@pytest.mark.parametrize("name", some(NAMES))
def test_with_few_descriptors_it_serves_or_ends_with_one_line(
    name: str, flags: list[str], folder: Path
) -> None:
    served = []
    for number in range(4, 17):
        shell = f'ulimit -n {number}; exec "$@"'
        status, ready, lines = started(name, folder, shell, *flags)
        served.append(ready)
        # EX_TEMPFAIL of filter-supervise: it may pass by itself.
        assert (status, ready) in {(0, True), (2, False), (75, False)}, lines
        if not ready:
            *noted, line = lines
            assert all(map(NOTES.match, noted)), lines
            assert line.startswith(f"{name}: "), line
            assert "Too many open files" in line or "unable to open" in line, line
    # Not with 4, with 16, and with any number above one that is enough.
    assert served == sorted(served)
    assert (served[0], served[-1]) == (False, True)


@pytest.mark.parametrize(
    ("closed", "reason"),
    [
        ("<&-", "stdin is closed: a filter must be started by smtpd"),
        (">&-", "stdout is closed: a filter must be started by smtpd"),
        ("2>&-", None),
        ("<&- 2>&-", ""),
        ("<&- >&- 2>&-", ""),
    ],
)
@pytest.mark.parametrize("name", some(NAMES))
def test_with_closed_descriptors_it_serves_or_ends_with_one_line(
    name: str, closed: str, reason: str | None, folder: Path
) -> None:
    shell = f'exec "$@" {closed}'
    status, ready, lines = started(name, folder, shell, "--journal", "/nonexistent")
    if reason is None:
        assert (status, ready) == (0, True)
    else:
        assert (status, ready) == (2, False)
        assert lines == ([f"{name}: {reason}"] if reason else [])
