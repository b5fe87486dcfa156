"""Policies that look things up: what to ask, written down apart from the asking.

The law:

1. A policy that asks the DNS is a generator: it yields the questions that it has now, is sent an
   outcome for each, and returns its decision.  It does no input or output and never waits.
2. `settle` runs it.  As far as the answers are known it is run at once, without a task; what is
   left is a coroutine.
3. What is raised in a policy is raised by `settle`, or in the coroutine.
"""

from __future__ import annotations

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import ENDPOINT, LIST, SECONDS, option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Sequence
    from typing import Any, TypeAlias, TypeVar

    from smtpd_filters.filter import Filter
    from smtpd_filters.lookups.dns import RecordType, Resolver
    from smtpd_filters.lookups.outcome import Outcome

    T = TypeVar("T")
    #: A name and the type of the records that are asked for.
    Question: TypeAlias = tuple[str, RecordType]
    #: A policy that comes to a T.
    Policy: TypeAlias = Generator[Sequence[Question], Sequence[Outcome[Any]], T]

# A look-up asks each server in two rounds, and waits twice as long in the second.
ROUNDS = 2
LOOKUP = 4


def nameserver_option(remark: str = "") -> tuple[tuple[str, int], ...]:
    """Declare `--nameserver`; `remark` is a further sentence about it."""
    return option(
        LIST(ENDPOINT(port=53, host="ADDRESS")),
        default=(),
        help="The address of a recursive name server to ask, instead of those in resolv.conf(5). "
        + remark,
    )


def timeout_option(lookups: str = "") -> float:
    """Declare `--timeout`; `lookups` says what a decision takes that makes several."""
    several = f", and {lookups}" if lookups else ""
    return option(
        SECONDS(low=0.01, high=60),
        default=2.0,
        help="How long to wait for a name server before the next is asked. The second round waits "
        f"twice as long, so that a look-up takes at most 8 s by default{several}.",
    )


def make_resolver(
    nameserver: tuple[tuple[str, int], ...], timeout: float, deadline: float | None = None
) -> Resolver:
    """Make a resolver of what `--nameserver` and `--timeout` say, in `setup`.

    `deadline` is how long a look-up may take altogether, in seconds; by default as long as it can.
    """
    from smtpd_filters.lookups.dns import Resolver  # a filter that asks nothing need not load it

    try:
        return Resolver(
            nameserver or None,
            timeout=timeout,
            deadline=LOOKUP * timeout if deadline is None else deadline,
            attempts=ROUNDS,
        )
    except ConfigError as error:
        raise ConfigError(f"--nameserver: {error}") from None
    except ImportError as error:
        raise ConfigError(f"dnspython is needed to look names up: {error}") from None


def note_timeout(filter_: Filter) -> None:
    """Log, in `setup`, that `--timeout` was given and `--deadline` passes before it."""
    timeout = vars(filter_.settings)["timeout"]
    if "timeout" in filter_.settings.given and timeout > filter_.deadline:
        given, over = SECONDS.show(timeout), SECONDS.show(filter_.deadline)
        filter_.log.event(f"--timeout {given} is not used: --deadline {over} is over before")


def ask_nothing(filter_: Filter) -> None:
    """With these settings nothing is looked up: it takes no event loop to run the filter."""
    filter_.later = frozenset()
    filter_.events -= {"arrived", "identified", "close"}


def settle(resolver: Resolver, policy: Policy[T]) -> T | Coroutine[Any, Any, T]:
    """Run a policy: its decision if all answers are known, else a coroutine that comes to it."""
    try:
        questions = next(policy)
        while True:
            answers = []
            for question in questions:
                known = resolver.known(*question)
                if known is None:
                    return _wait(resolver, policy, questions)
                answers.append(known)
            questions = policy.send(answers)
    except StopIteration as end:
        decision: T = end.value
        return decision


async def _wait(resolver: Resolver, policy: Policy[T], questions: Sequence[Question]) -> T:
    try:
        while True:
            questions = policy.send(await resolver.query_all(questions))
    except StopIteration as end:
        decision: T = end.value
        return decision
