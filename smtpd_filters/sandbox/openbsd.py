"""The sandbox on OpenBSD: unveil(2) for paths, pledge(2) for everything else.

The promise "error" makes the kernel return ENOSYS for what was not promised, in place of killing
the process.
"""

from __future__ import annotations

import os

from .needs import NULL, PROGRAMS, readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .libc import Libc
    from .needs import Needs


def confine(libc: Libc, needs: Needs) -> list[str]:
    """Give up what is not needed; return what could not be given up, for the log."""
    try:
        _unveil(libc, needs)
        libc.call("pledge", " ".join(promises(needs)).encode(), None)
    except OSError as error:
        return [f"{error.filename or 'pledge'}(2): {error.strerror}"]
    return []


def promises(needs: Needs) -> list[str]:
    """Return the promises of pledge(2)."""
    # Modules and libraries are loaded when they are first used: rpath and prot_exec.
    words = ["stdio", "rpath", "prot_exec", "error"]
    if needs.write:
        words += ["wpath", "cpath", "flock", "fattr"]
    if needs.internet:
        words.append("inet")
    if needs.resolves:
        words.append("dns")
    if needs.sockets:
        words.append("unix")
    if needs.receives:
        words.append("recvfd")
    if needs.runs:
        words += ["proc", "exec"]
    return words


def _unveil(libc: Libc, needs: Needs) -> None:
    for path, rights in unveiled(needs).items():
        # A rule is for a name, so a file may be missing, or be replaced; its directory may not.
        if os.path.lexists(os.path.dirname(path) or "/"):  # noqa: PTH120  # pathlib costs start-up
            libc.call("unveil", os.fsencode(path), rights.encode())
    libc.call("unveil", None, None)


def unveiled(needs: Needs) -> dict[str, str]:
    """Map the paths that remain visible to their rights, each once: rights can't be added later."""
    replaced = [each for path in needs.replaced for each in (path, os.path.realpath(path))]
    paths = dict.fromkeys((*readable(needs), *replaced), "r")
    if needs.runs:
        paths |= dict.fromkeys((*PROGRAMS, *needs.programs), "rx")
    paths |= dict.fromkeys((NULL, *needs.sockets), "rw")
    return paths | dict.fromkeys(needs.write, "rwc")
