#!/usr/bin/env python3
"""The writer of the executables in [project.scripts] of pyproject.toml.

pip's scripts import `re` and start the interpreter with all of its site directories, and smtpd
waits for each filter to start. A filter's launcher starts the interpreter isolated (-I: environment
variables and users' site directories have no effect on the mail server) and without the module
`site` (-S), so it adds the directories of the modules itself. Other programs get an isolated
launcher, and a second one in the filters' directory, the only one in which smtpd looks for a
program without a path, such as "smtpd-filters record".
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

FILTER = """\
#!{python} -IS
import signal
import sys

# A reload right after a restart must not end a filter that is still loading: see startup.py.
signal.signal(signal.SIGHUP, signal.SIG_IGN)

sys.path += [{path}]
from {module} import {function}

sys.exit({function}())
"""
TOOL = """\
#!{python} -I
import sys

from {module} import {function}

sys.exit({function}())
"""


def _literal(directory: str) -> str:
    """Return a Python expression for a directory, in which %d is the minor version of Python."""
    quoted = f'"{directory}"'
    return f"{quoted} % sys.version_info[1]" if "%d" in directory else quoted


def main() -> None:
    """Write all executables and print their paths."""
    parser = argparse.ArgumentParser(description="Write the executables of the project.")
    parser.add_argument("--python", required=True, help="the interpreter")
    parser.add_argument("--path", required=True, action="append", help="a directory of modules")
    parser.add_argument("--root", default="", help="a prefix of --filters and --tools")
    parser.add_argument("--filters", required=True, help="the directory of filters")
    parser.add_argument("--tools", required=True, help="the directory of all other programs")
    parser.add_argument("pyproject", type=Path)
    options = parser.parse_args()

    with options.pyproject.open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    for name, entry in sorted(scripts.items()):
        module, _, function = entry.partition(":")
        wanted = [(FILTER, options.filters)]
        if not name.startswith("filter-"):
            wanted.append((TOOL, options.tools))
        for text, directory in wanted:
            file = Path(options.root + directory, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                text.format(
                    python=options.python,
                    path=", ".join(map(_literal, options.path)),
                    module=module,
                    function=function,
                )
            )
            file.chmod(0o755)
            print(f"{directory}/{name}")


if __name__ == "__main__":
    main()
