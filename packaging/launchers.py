#!/usr/bin/env python3
"""Write the executables that [project.scripts] of pyproject.toml names.

What pip writes for them imports the regular expressions first and asks for all of the interpreter's
start; smtpd waits for that once per filter.  Filters get a launcher that starts the interpreter
isolated (-I: no environment variable and no user's site directory has a say in what a mail server
runs) and without the module site (-S), and therefore names the directories of the modules itself.
Other programs get one that is isolated; and one beside the filters, as smtpd looks nowhere else for
what smtpd.conf names without a path: "smtpd-filters record", say.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

FILTER = """\
#!{python} -IS
import signal
import sys

# A reload right after a restart must not end a filter that is still being loaded: see startup.py.
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
    """Python code for a directory; in it, %d is the interpreter's minor version."""
    quoted = f'"{directory}"'
    return f"{quoted} % sys.version_info[1]" if "%d" in directory else quoted


def main() -> None:
    """Write them all, and print the path of each."""
    parser = argparse.ArgumentParser(description="Write the executables of the project.")
    parser.add_argument("--python", required=True, help="the interpreter")
    parser.add_argument("--path", required=True, action="append", help="where modules are")
    parser.add_argument("--root", default="", help="put before --filters and --tools")
    parser.add_argument("--filters", required=True, help="where smtpd looks for filters")
    parser.add_argument("--tools", required=True, help="where users look for the others")
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
