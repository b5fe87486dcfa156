"""Recognition of the programs that use this package, without starting them.

A program of the operator's own names the package in its first 64 KiB. The script of another
distribution, as pip writes it, only imports a module of that distribution; it uses this package if
the distribution has entry points of filters.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from pathlib import Path

from smtpd_filters.settings.files import open_file

from .distributions import GROUP, entry_points_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes of a program that are searched.
_HEAD = 1 << 16
#: Bytes of a first line at most, as in Linux.
_LINE = 256
#: Interpreters before the file of a filter in a command.
_INTERPRETERS = re.compile(r"env|python[0-9.]*")
_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+([\w.]+)", re.MULTILINE)
#: The directories of distributions below that of an interpreter's `bin`.
_SITES = ("lib/python3*/*-packages", "local/lib/python3*/*-packages")


def uses_package(command: str, path: str, root: str) -> bool:
    """Return whether a command, whose program is `path`, runs one that uses this package."""
    files = [path]
    if _INTERPRETERS.fullmatch(Path(path).name):
        with contextlib.suppress(ValueError):
            files = [word for word in shlex.split(command)[1:] if not word.startswith("-")]
    return any(_file_uses_package(file, root) for file in files)


def interpreter_of(path: str) -> str:
    """Return the interpreter that the first line of a program names, or ""."""
    try:
        with open_file(path) as file:
            first = file.readline(_LINE)
    except OSError:
        return ""
    words = first.removeprefix(b"#!").decode("utf-8", "surrogateescape").split()
    return words[0] if first.startswith(b"#!") and words else ""


def _file_uses_package(path: str, root: str) -> bool:
    try:
        with open_file(f"{root}{path}") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    if b"\0" in head:
        return False
    if b"smtpd_filters" in head:
        return True
    imported = {name.decode() for name in _IMPORT.findall(head)}
    return bool(imported) and not imported.isdisjoint(
        _modules_of_scripts(interpreter_of(f"{root}{path}"), root)
    )


def _modules_of_scripts(interpreter: str, root: str) -> Iterator[str]:
    """Yield the modules of the scripts of distributions that have filters.

    The distributions are those of the program's interpreter, and of this one.
    """
    prefix = Path(f"{root}{interpreter}").parent.parent
    sites = [str(found) for pattern in _SITES for found in prefix.glob(pattern)]
    for entries, _, _ in entry_points_of([*sites, *([] if root else sys.path)]):
        if entries.select(group=GROUP):
            for script in entries.select(group="console_scripts"):
                yield script.value.partition(":")[0].strip()
