"""The package's programs inside a lab: their interpreter, launchers and bytecode."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import smtpd_filters

from .layout import CODE, LIBRARIES, PYCACHE
from .releases import SYSTEM

if TYPE_CHECKING:
    from .lab import Lab

PACKAGE = Path(smtpd_filters.__file__).resolve().parent
# The package's bytecode as a tar archive, by the server's file system.
_compiled: dict[Path, bytes] = {}


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
        head = (
            f"#!{self._python} -I\n"
            "import sys\n"
            f"sys.pycache_prefix = {PYCACHE!r}\n"
            f"sys.path[:0] = {self._import_path!r}\n"
        )
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
            f"#!/bin/sh\nPYTHONPATH={':'.join(self._import_path)}\n"
            f"PYTHONPYCACHEPREFIX={PYCACHE}\nexport PYTHONPATH PYTHONPYCACHEPREFIX\n"
            f'exec {self._python} -s "$@"\n'
        )
        return launchers

    def bytecode(self, lab: Lab) -> bytes:
        """Return the package compiled for the server's Python as a tar archive, which is cached.

        The checkout is read-only inside and filters run unprivileged; without this, each of them
        would compile the package at each start.
        """
        if self._root not in _compiled:
            options = ["-X", f"pycache_prefix={PYCACHE}", "-m", "compileall", "-q"]
            options += ["-x", "/testing/"]
            # A file that doesn't compile is reported by its filter.
            lab.run(self._python, *options, f"{CODE}/smtpd_filters", check=False)
            packed = lab.run("tar", "-cf", "-", "-C", PYCACHE, ".")
            _compiled[self._root] = packed.stdout
        return _compiled[self._root]
