"""Random conversations while allocations fail now and then: a program for a test.

`scarce.py CONVERSATIONS`: half of them with programs that misbehave, half with honest ones. What
the loop does again after a MemoryError is done again. Prints what went wrong, and the number.
"""

# ruff: noqa: T201

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]  # CPython's own
import random
import sys
from typing import TYPE_CHECKING, Any

from tests.protocol.hostile import Choices, Smtpd
from tests.supervise import hostile
from tests.supervise.test_properties import Watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.supervise.hostile import Program

#: Allocations after which one fails at most; and how many fail then.
LATEST, WIDTHS = 80, (1, 1, 2, 20)
#: How often a call is tried while allocations fail.
TRIES = 4


class Stage(hostile.Stage):
    """An engine in which the methods that the loop calls may run out of memory."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311  # the same conversations in every run
        self.rate = self.chance.choice((0.02, 0.1, 0.4))
        self.choices = Choices(self.chance.randbytes(self.chance.choice((200, 600, 1500))))
        honest = seed % 2 == 1
        super().__init__(self.choices.of, honest=honest, smtpd=Watching if honest else Smtpd)
        engine: Any = self.engine
        for name in ("settle", "expire", "lost"):
            setattr(engine, name, self.repeated(getattr(engine, name)))
        engine.transit.feed = self.repeated(engine.transit.feed)
        # It doesn't raise; the program is at fault.
        process = engine.from_program
        engine.from_program = lambda link, data: self.failing(lambda: process(link, data))
        self.take = self.repeated(engine.from_smtpd)

    def failing(self, call: Callable[[], object]) -> object:
        """Call it, maybe while allocations fail."""
        if self.chance.random() >= self.rate:
            return call()
        start = self.chance.randrange(LATEST)
        _testcapi.set_nomemory(start, start + self.chance.choice(WIDTHS))
        try:
            return call()
        finally:
            _testcapi.remove_mem_hooks()

    def repeated(self, function: Callable[..., object]) -> Callable[..., object]:
        """The function, which is called until it has had enough memory."""

        def call(*arguments: object) -> object:
            for _ in range(TRIES):
                try:
                    return self.failing(lambda: function(*arguments))
                except MemoryError:
                    pass
            return function(*arguments)

        return call

    def receive(self, data: bytes) -> None:
        """Take bytes of smtpd; other things happen while there is no memory for all of them."""
        if not hasattr(self, "take"):  # the handshake
            super().receive(data)
            return
        self.take(data)
        smtpd = self.engine.smtpd
        for _ in range(TRIES):
            if smtpd.stalled:
                self.failing(smtpd.resume)
                self.engine.settle()
        while smtpd.stalled:
            smtpd.resume()

    def look_after(self, program: Program) -> None:
        """Do what the fleet does; a program for which there was no memory is honest."""
        if "memory" in program.link.fault:
            self.end(program)
            self.engine.settle()
            return
        super().look_after(program)

    def play(self) -> None:
        """Raise AssertionError if a rule is broken."""
        while self.choices.left:
            if self.choices.below(2):
                self.smtpd.act()
            else:
                self.happen()
                self.smtpd.collect()
        self.finish()


def main() -> int:
    conversations = int(sys.argv[1])
    for seed in range(conversations):
        try:
            Stage(seed).play()
        except Exception as error:  # noqa: BLE001  # it is what went wrong
            print(f"conversation {seed}: {error!r}")
    print(f"{conversations} tried")
    return 0


if __name__ == "__main__":
    sys.exit(main())
