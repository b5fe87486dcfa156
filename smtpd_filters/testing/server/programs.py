"""The package's programs inside a lab: their interpreter, launchers and bytecode."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import smtpd_filters

from .layout import CODE, LIBRARIES
from .releases import SYSTEM

if TYPE_CHECKING:
    from .lab import Lab

PACKAGE = Path(smtpd_filters.__file__).resolve().parent
# The file systems of servers for whose Python the package is compiled.
_compiled: set[Path] = set()


class Programs:
    """The programs of this package inside a lab, and scripts that import it.

    `root` is the server's file system. `binds` and `exposed` are for the lab.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.binds = {CODE: PACKAGE.parent}
        self.exposed: list[Path] = []
        self._import_path = [CODE]
        if root == SYSTEM:
            # This interpreter, and the packages installed for it.
            self._python = os.path.realpath(sys.executable)
            self.binds[LIBRARIES] = Path(sysconfig.get_path("purelib"))
            self._import_path.append(LIBRARIES)
            if not self._python.startswith("/usr/"):
                self.exposed.append(Path(sys.base_prefix).resolve())
        else:
            self._python = "/usr/bin/python3"

    def launchers(self) -> dict[str, str]:
        """Return the text of each program by name; `python` runs scripts."""
        head = f"#!{self._python} -I\nimport sys\nsys.path[:0] = {self._import_path!r}\n"
        modules = {
            "smtpd-filters": "smtpd_filters.cli",
            "filter-chain": "smtpd_filters.cli.chain",
            "filter-supervise": "smtpd_filters.supervise.program",
        }
        for file in (PACKAGE / "filters").glob("[!_]*"):
            if file.suffix == ".py" or (file / "__init__.py").exists():
                name = f"filter-{file.stem.replace('_', '-')}"
                modules[name] = f"smtpd_filters.filters.{file.stem}"
        launchers = {
            name: f"{head}from {module} import main\nsys.exit(main())\n"
            for name, module in modules.items()
        }
        launchers["python"] = (
            f"#!/bin/sh\nPYTHONPATH={':'.join(self._import_path)}\nexport PYTHONPATH\n"
            f'exec {self._python} -s "$@"\n'
        )
        return launchers

    def compile(self, lab: Lab) -> None:
        """Compile the package for the server's Python, beside the sources; once in this process.

        The checkout is read-only inside and filters run unprivileged; without this, each of them
        would compile the package at each start.
        """
        if self._root not in _compiled:
            compiling = [self._python, "-I", "-m", "compileall", "-q", "-x", "/testing/"]
            compiling.append(f"{CODE}/smtpd_filters")
            # A file that doesn't compile is reported by its filter, as is a folder that can't be
            # written.
            lab.run(
                *("unshare", "--mount", "sh", "-c", 'mount -o remount,bind,rw "$0" && exec "$@"'),
                *(CODE, *compiling),
                check=False,
            )
            _compiled.add(self._root)
