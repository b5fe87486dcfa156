"""Joins the parts of a story: of several processes, and of several datagrams.

A story is complete `HOLD` seconds after its first part: all processes send when smtpd reports the
end of the transaction to them. A part that comes later is stored as a story of its own, and joined
when it is read.

Invariants
----------
*Bounded*: a story has at most `MAX_VERDICTS`, `MAX_ANSWERS` and `MAX_PROCESSES`, however many parts
it is joined of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .wire import AT, TOOK, count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .reception import Part

#: Seconds to wait for further parts.
HOLD = 1.0
#: Stories held at a time, and the memory that they may take, in bytes; the oldest are complete
#: earlier if there are more.
MAX_HELD, MAX_MEMORY = 20_000, 64 << 20
#: The memory that a story takes, each of its verdicts, and a byte of its datagrams.
_STORY, _VERDICT, _BYTE = 2000, 400, 4
#: Of a story; the names of the processes that sent it.
MAX_VERDICTS, MAX_ANSWERS, MAX_PROCESSES = 400, 32, 32
#: Characters of a reply's code.
_CODE = 3


class Merger:
    """The stories that are not complete."""

    def __init__(self, max_held: int = MAX_HELD, max_memory: int = MAX_MEMORY) -> None:
        self._max_held, self._max_memory = max_held, max_memory
        #: In the order of their first parts: since when, and the story so far.
        self._held: dict[tuple[str, str], tuple[float, Part]] = {}
        #: The memory of each story, and of all.
        self._memory: dict[tuple[str, str], int] = {}
        self._total = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """Whether stories are complete although further parts may come."""
        return len(self._held) > self._max_held or self._total > self._max_memory

    def add(self, part: Part, now: float, size: int = 0) -> None:
        """Add a part that came at `now`, in a datagram of `size` bytes."""
        key = part["s"], part["m"]
        taken = _STORY + _VERDICT * len(part["w"]) + _BYTE * size
        self._memory[key] = self._memory.get(key, 0) + taken
        self._total += taken
        held = self._held.get(key)
        if held is None:
            self._held[key] = now, {**part, "p": [part["p"]]}
        else:
            join(held[1], {**part, "p": [part["p"]]})

    def due(self, now: float, *, everything: bool = False) -> list[Part]:
        """Remove and return the stories that are complete."""
        complete: list[Part] = []
        for key, (since, part) in list(self._held.items()):
            if not (everything or self.is_full or now - since >= HOLD or since > now):
                break
            del self._held[key]
            self._total -= self._memory.pop(key)
            complete.append(part)
        return complete


def join(story: Part, part: Part) -> None:
    """Add a part to a story; both have lists of processes."""
    earlier = min(story["t"], part["t"])
    ends = max(story["t"] + story["d"], part["t"] + part["d"])
    shift, later = story["t"] - earlier, part["t"] - earlier
    if shift:
        for row in story["w"]:
            row[AT] += shift
    room = MAX_VERDICTS - count(story["w"])
    for row in part["w"]:
        room -= count([row])
        if room < 0:
            story["y"] += count([row])
            continue
        story["w"].append([*row[:AT], row[AT] + later, *row[TOOK:]])
    story["t"], story["d"] = earlier, ends - earlier
    for key in ("l", "f", "i", "j"):
        story[key] = story[key] or part[key]
    for key in ("c", "h", "u"):
        story[key] = [mine or theirs for mine, theirs in zip(story[key], part[key], strict=True)]
    if len(part["r"]) > len(story["r"]):
        story["r"] = part["r"]
    story["a"] = _answers(story["a"], part["a"])
    if story["e"] != "commit":
        story["e"] = part["e"] or story["e"]
    story["z"] = max(story["z"], part["z"])
    story["x"] += part["x"]
    story["y"] += part["y"]
    story["p"] += [each for each in part["p"] if each not in story["p"]]
    del story["p"][MAX_PROCESSES:]


def _answers(some: list[str], others: list[str]) -> list[str]:
    """Return smtpd's replies of two parts: the longer list.

    Of a reply that may repeat a credential one process keeps its code only, and the others don't
    know of that.
    """
    codes = {each for each in (*some, *others) if len(each) == _CODE}
    longer = others if len(others) > len(some) else some
    return [each[:_CODE] if each[:_CODE] in codes else each for each in longer]


def joined(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return stored parts of one story as one."""
    first, *rest = parts
    for part in rest:
        join(first, part)
    return first
