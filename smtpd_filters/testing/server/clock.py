"""The clock of processes in a lab: this process's, including an offset by datefudge(1).

datefudge sets the offset in the environment, and processes in a lab have their own environment.
(faketime(1) isn't suitable: its library hangs programs with jemalloc, such as Rspamd and Redis, and
ends programs that run as another user, such as filters.)
"""

from __future__ import annotations

import os

LIBRARY = "/usr/$LIB/datefudge/datefudge.so"  # of the file system that it is loaded in; ld.so(8)


def variables() -> dict[str, str]:
    """Return the environment variables for this process's clock offset, if it has one."""
    moved = {name: value for name, value in os.environ.items() if name.startswith("DATEFUDGE")}
    return {**moved, "LD_PRELOAD": LIBRARY} if moved else {}
