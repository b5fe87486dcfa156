"""Exception handlers where memory runs out: *Short handlers* of `runtime.engine`."""

from __future__ import annotations

import dis
import sys
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.protocol import filter_side
from smtpd_filters.runtime import asyncio_loop, engine, first_step, jobs, messages, poll_loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

#: The greatest index that takes no memory: CPython keeps such ints; since 3.14 the stack has any
#: index without an object.
KEPT = 256 if sys.version_info < (3, 14) else sys.maxsize
#: What raises in a handler; `RERAISE` if no `except` matches.
RAISING = ("CALL", "RAISE_VARARGS", "RERAISE")
HELD = [filter_side, engine, first_step, jobs, messages, asyncio_loop, poll_loop]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        # `run` has exception handlers for its end only.
        if isinstance(each, CodeType) and each.co_qualname != "run":
            yield from _codes(each)


def _late(code: CodeType) -> Iterator[int]:
    """Return the lines of handlers whose index would be allocated."""
    bytecode: Any = dis.Bytecode(code)  # typeshed lacks `exception_entries`
    # Without `lasti` no index is made: that is code outside of handlers.
    entries = [each for each in bytecode.exception_entries if each.lasti]
    instructions = list(dis.get_instructions(code))
    ends = [each.offset // 2 - 1 for each in instructions[1:]] + [len(code.co_code) // 2 - 1]
    for each, end in zip(instructions, ends, strict=True):
        if (
            each.opname.startswith(RAISING)
            and end > KEPT  # with the inline cache: a call of Python code is there while it runs
            and any(entry.start <= each.offset < entry.end for entry in entries)
        ):
            assert each.positions is not None
            yield each.positions.lineno or 0


@pytest.mark.parametrize("module", HELD, ids=lambda module: module.__name__)
def test_no_handler_needs_memory_for_its_own_index(module: ModuleType) -> None:
    path = Path(str(module.__file__))
    code = compile(path.read_text(), str(path), "exec", dont_inherit=True)
    assert [line for each in _codes(code) for line in _late(each)] == []
