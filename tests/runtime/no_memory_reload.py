"""Reloads while single allocations fail: a program for a test.

`no_memory_reload.py WIDTH`: each allocation in each step of a reload is made to fail once, and the
`WIDTH` - 1 after it as well.  Whatever fails, a table has its old entries or the new ones, and the
next reload succeeds.  Prints what went wrong, and at the end how often something was tried.
"""

# ruff: noqa: T201

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]  # CPython's own
import sys
import tempfile
from collections import deque
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters import PROCEED, Filter, Proceed, Session, Settings, option
from smtpd_filters.chain import Chain
from smtpd_filters.runtime.log import Log
from smtpd_filters.runtime.poll_loop import add_chore, do_chore
from smtpd_filters.settings import table
from smtpd_filters.tables import AddressTable, DomainTable, NetworkTable, RegexTable
from tests.effort import SHARE, part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.tables import Table

#: A kind of table, an entry with a letter and a number, and a key that it covers.
KINDS: dict[str, tuple[type[Table], str, str]] = {
    "domains": (DomainTable, "{}{}.example", "{}{}.example"),
    "stars": (DomainTable, "*.{}{}.*", "x.{}{}.y"),
    "addresses": (AddressTable, "u@{}{}.example", "u@{}{}.example"),
    "networks": (NetworkTable, "{}000:{}::/32", "{}000:{}::1"),
    "patterns": (RegexTable, "^{}{}$", "{}{}"),
}
COUNT = 3


class Listed(Filter):
    class Options(Settings):
        domains = option(table(DomainTable), required=True, help="Names.")
        stars = option(table(DomainTable), required=True, help="Names.")
        addresses = option(table(AddressTable), required=True, help="Addresses.")
        networks = option(table(NetworkTable), required=True, help="Networks.")
        patterns = option(table(RegexTable), required=True, help="Patterns.")

    settings: Options

    def mail_from(self, session: Session, address: str) -> Proceed:  # noqa: ARG002  # a policy's
        return PROCEED


def write(folder: Path, letter: str) -> None:
    for name, (_, entry, _) in KINDS.items():
        text = "".join(entry.format(letter, number) + "\n" for number in range(COUNT))
        (folder / name).write_text(text)


def found(filter_: Listed, name: str) -> str:
    """Which of the old entries (a) and the new ones (b) there are."""
    key = KINDS[name][2]
    tables = vars(filter_.settings)
    return "".join(
        letter
        for letter in "ab"
        for number in range(COUNT)
        if key.format(letter, number) in tables[name]
    )


def main(width: int) -> None:
    start = quiet = 0
    with tempfile.TemporaryDirectory() as name, open("/dev/null", "wb") as sink:  # noqa: PTH123
        folder = Path(name)
        log = Log(fd=sink.fileno())
        write(folder, "a")
        made = {each: kind(f"file:{folder}/{each}") for each, (kind, _, _) in KINDS.items()}
        filter_ = Listed(Listed.Options(**made))
        chain = Chain([(filter_, "proceed", 5.0)], log)
        letters = cycle("ba")
        while quiet < part(ENOUGH):
            letter = next(letters)
            write(folder, letter)
            failing(chain, log, start, start + width)
            states = {each: found(filter_, each) for each in KINDS}
            for each, said in states.items():
                if said not in {"aaa", "bbb"}:
                    print(f"allocation {start}: {each} has {said}")
            quiet = quiet + 1 if set(states.values()) == {letter * COUNT} else 0
            for _ in chain.reload():
                pass
            if any(found(filter_, each) != letter * COUNT for each in KINDS):
                print(f"allocation {start}: not reloaded the next time")
            start += SHARE
    print(f"{start // SHARE} tried")


def failing(chain: Chain, log: Log, start: int, stop: int) -> None:
    """Reload while these allocations fail."""
    chores: deque[Iterator[None]] = deque()
    add_chore(chores, chain)
    _testcapi.set_nomemory(start, stop)
    try:
        while chores:
            do_chore(chores, log)
    except MemoryError:
        pass  # the loop goes on behind it
    finally:
        _testcapi.remove_mem_hooks()


#: So many allocations in a row whose failure is not noticed are those behind the reload.
ENOUGH = 200


if __name__ == "__main__":
    main(int(sys.argv[1]))
