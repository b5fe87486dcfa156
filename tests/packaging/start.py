"""The time that an installed filter takes to start, with the package's launcher and with pip's.

    python -m tests.packaging.start [SUITE]

It builds the package, installs it on a clean root of that Debian release, and starts each program
many times in turn. It measures the time from exec until `register|ready` and the end of its input.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.packaging.conftest import copy_of
from tests.packaging.roots import SOURCE, Machine
from tests.packaging.test_deb import build, depends

#: Runs inside: the names of filters and their arguments are its arguments, one string each.
INSIDE = r"""
import os, statistics, subprocess, sys, time
from pip._vendor.distlib.scripts import ScriptMaker

ROUNDS = 101
HELLO = b"config|smtpd-version|7.6.0p1\nconfig|protocol|0.7\nconfig|ready\n"

maker = ScriptMaker(None, "/tmp/wrappers")
maker.executable, maker.variants, maker.clobber = "/usr/bin/python3", {""}, True
os.makedirs("/tmp/wrappers", exist_ok=True)
programs = {("the interpreter", ""): ["/usr/bin/python3", "-c", "pass"]}
for words in map(str.split, sys.argv[1:]):
    name, module = words[0], words[0].removeprefix("filter-")
    maker.make(f"{name} = smtpd_filters.filters.{module}:main")
    programs[name, "wrapper"] = [f"/tmp/wrappers/{name}", *words[1:]]
    programs[name, "launcher"] = [f"/usr/libexec/opensmtpd/{name}", *words[1:]]
taken = {key: [] for key in programs}
for number in range(ROUNDS):
    for key, command in programs.items():
        before = time.perf_counter()
        done = subprocess.run(command, input=HELLO, capture_output=True)
        taken[key].append(time.perf_counter() - before)
        assert done.returncode == 0, done
        assert key[1] == "" or done.stdout.endswith(b"register|ready\n"), done
bare = min(taken["the interpreter", ""])
for (name, kind), times in taken.items():
    print(
        f"{name:20} {kind:9} {min(times) * 1e3:6.1f} ms   median"
        f" {statistics.median(times) * 1e3:6.1f} ms   {min(times) / bare:4.2f} x the interpreter"
    )
"""
FILTERS = ("filter-trace", "filter-dyndns", "filter-fcrdns", "filter-mailfrom --domains a.example")


def main() -> int:
    """Measure and print."""
    suite = sys.argv[1] if len(sys.argv) > 1 else "bookworm"
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        deb = build(suite, copy_of(SOURCE, scratch / "source"), scratch / "output")
        machine = Machine.clean(suite, scratch / "root")
        machine.apt("satisfy", f"{depends(deb)}, python3-pip")
        machine.run("dpkg", "-i", machine.put(deb))
        (machine.root / "tmp/start.py").write_text(INSIDE)
        sys.stdout.write(machine.run("python3", "-I", "/tmp/start.py", *FILTERS))  # noqa: S108  # inside
    return 0


if __name__ == "__main__":
    sys.exit(main())
