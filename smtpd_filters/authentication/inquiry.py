"""The form of the engines, and the driver that looks up what an engine asks for.

An engine is a generator: it yields the questions that it has, is sent their outcomes in the same
order, and returns its result. It does no I/O and has no clock. The questions of one step are
independent of each other, so that the driver asks them side by side.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from smtpd_filters.lookups.dns import RecordType, Resolver
    from smtpd_filters.lookups.outcome import Outcome

T = TypeVar("T")

#: A name and the type of its records.
Question: TypeAlias = "tuple[str, RecordType]"
#: The outcomes of questions, in their order.
Answers: TypeAlias = "Sequence[Outcome[Any]]"
Engine: TypeAlias = Generator[Sequence["Question"], "Answers", T]


async def settle(engine: Engine[T], resolver: Resolver) -> T:
    """Return the result of an engine whose questions a resolver answers."""
    try:
        questions = next(engine)
        while True:
            questions = engine.send(await resolver.query_all(questions))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        engine.close()
