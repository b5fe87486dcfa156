"""The form of the engines, and the driver that looks up what an engine asks for.

An engine is a generator: it yields the questions that it has, is sent their outcomes in the same
order, and returns its result. It does no I/O and has no clock. The questions of one step are
independent of each other, so that the driver asks them side by side. A step without questions is a
pause: the work so far has taken milliseconds, and others should have a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from smtpd_filters.lookups.dns import RecordType, Resolver
    from smtpd_filters.lookups.outcome import Outcome

T = TypeVar("T")

#: The look-up of an outcome that is available at once (`Resolver.known`).
Known: TypeAlias = "Callable[[str, Any], Outcome[Any] | None]"
#: A name and the type of its records.
Question: TypeAlias = "tuple[str, RecordType]"
Questions: TypeAlias = "Sequence[Question]"
#: The outcomes of questions, in their order.
Answers: TypeAlias = "Sequence[Outcome[Any]]"
Engine: TypeAlias = Generator["Questions", "Answers", T]


def at_once(engine: Engine[T], resolver: Resolver) -> tuple[T, None] | tuple[None, Questions]:
    """Begin an engine: return its result, or the first questions that the cache doesn't answer.

    At a pause it returns none.
    """
    known: Known = resolver.known
    try:
        questions = next(engine)
        while True:
            if not questions:
                return None, questions
            answers = []
            for question in questions:
                answer = known(*question)
                if answer is None:
                    return None, questions
                answers.append(answer)
            questions = engine.send(answers)
    except StopIteration as end:
        return end.value, None


@coroutine
def _turn() -> Generator[None, None, None]:
    """Let the event loop serve others once."""
    yield


async def settle(
    engine: Engine[T],
    resolver: Resolver,
    questions: Questions | None = None,
    pause: Callable[[], Awaitable[None]] = _turn,
) -> T:
    """Return the result of an engine whose questions a resolver answers.

    `questions` are those that an engine has which has begun (`at_once`). `pause` is awaited when it
    pauses.
    """
    try:
        if questions is None:
            questions = next(engine)
        while True:
            if not questions:
                await pause()
            questions = engine.send(await resolver.query_all(questions) if questions else ())
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        engine.close()
