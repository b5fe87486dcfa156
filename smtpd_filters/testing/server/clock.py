"""The clock of what a lab runs: this process's, also where datefudge(1) has moved it.

datefudge moves a program's clock by variables of its environment; what runs in a lab has an
environment of its own. (faketime(1) can't do it: its library hangs programs that bring jemalloc,
as Rspamd and Redis do, and ends those that run as another user, as filters do.)
"""

from __future__ import annotations

import os

LIBRARY = "/usr/$LIB/datefudge/datefudge.so"  # of the file system that it is loaded in; ld.so(8)


def variables() -> dict[str, str]:
    """Return the variables that move a program's clock as ours is moved; none if ours isn't."""
    moved = {name: value for name, value in os.environ.items() if name.startswith("DATEFUDGE")}
    return {**moved, "LD_PRELOAD": LIBRARY} if moved else {}
