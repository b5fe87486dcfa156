"""For every test: nothing is left behind, and a busy machine is no failure."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import threading
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol  # for plugins that report in their own way
from hypothesis import HealthCheck, settings

from smtpd_filters.runtime.log import Log
from smtpd_filters.testing.server import add_server, unavailable, versions
from tests.effort import SHARE, part
from tests.needed import need
from tests.processes import starts_processes

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# On a busy machine nothing is said by how long it takes to draw an example, or to try it. Where CI
# is set, as by .ci/run, Hypothesis draws the same ones each time: news are for who looks for them.
settings.register_profile(
    "smtpd-filters",
    max_examples=part(100),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("smtpd-filters")

#: What the test runner itself opens now and then: the interpreter's own, Hypothesis's examples,
#: the coverage data.
_OF_THE_RUNNER = ("/dev/urandom", "/dev/null", ".hypothesis", ".coverage", "/proc/")
#: Seconds that a thread which is ending may still take.
_LAST_BREATH = 30.0


#: What takes longest is begun first, lest one process be left with it when all others are done.
#: These folders are markers as well: `make unit` leaves them out.
_LONGEST_FIRST = ("packaging", "e2e")
#: The markers of the tests that `make unit` leaves out.
_NOT_IN_UNIT = {"allocations", "e2e", "packaging", "processes"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--smtpd",
        action="append",
        default=[],
        metavar="ROOT[=VERSION]",
        help="run the tests of real servers also on the smtpd of this root (see CONTRIBUTING.md)",
    )


def pytest_configure(config: pytest.Config) -> None:
    for given in config.getoption("smtpd"):
        try:
            add_server(given)
        except ValueError as exc:
            raise pytest.UsageError(f"--smtpd {exc}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for the fixture `version` on each: a fixture can't wait for the options."""
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "version" in metafunc.fixturenames and not any("version" in names for names in own):
        definition = metafunc.definition
        folder = definition.path.relative_to(Path(__file__).parent).parts[0]
        if folder not in _LONGEST_FIRST and not definition.get_closest_marker("e2e"):
            raise pytest.UsageError(f"{definition.nodeid}: runs a real smtpd: mark it e2e")
        metafunc.parametrize("version", versions(), indirect=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no module of a folder whose tests the markers leave out, all of them."""
    if collection_path.parent == Path(__file__).parent:
        chosen = str(config.option.markexpr).split(" and ")
        if f"not {collection_path.name}" in chosen and collection_path.name in _LONGEST_FIRST:
            return True
    return None


@pytest.hookimpl(tryfirst=True)  # before markers choose tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    folders = {path: path.relative_to(here).parts[0] for path in {item.path for item in items}}
    for item in items:
        folder = folders[item.path]
        if folder in _LONGEST_FIRST:
            item.add_marker(folder)
        if isinstance(item, pytest.Function) and starts_processes(item):
            item.add_marker("processes")

    def rank(item: pytest.Item) -> int:
        folder = folders[item.path]
        return (*_LONGEST_FIRST, folder).index(folder)

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests, thousands of objects that stay, without collections of garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Keep the collected tests out of every collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Report a test that passed once, with the time of its fixtures, to the process of `make unit`.

    By default a worker sends six messages, a quarter of the effort for a test that does little.
    """
    if SHARE == 1 or not hasattr(item.config, "workerinput"):
        return None
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if all(report.passed for report in reports):
        call = next(report for report in reports if report.when == "call")
        call.duration = sum(report.duration for report in reports)
        reports = [call]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    return True


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208  # names are wanted, not paths
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115  # a link to no path
        except OSError:  # the one that listed them
            continue
    return {
        number: target
        for number, target in found.items()
        if not any(own in target for own in _OF_THE_RUNNER)
    }


def _children() -> set[str]:
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208  # twice for each of 10,000 tests
        try:
            with open(f"/proc/self/task/{task}/children", "rb") as file:  # noqa: PTH123  # as above
                found.update(file.read().decode().split())
        except OSError:  # a thread that has just ended
            continue
    return found


def _tasks() -> set[asyncio.Task[Any]]:
    """Return the tasks that are not done, those of other threads' loops too."""
    every = getattr(asyncio.tasks, "_all_tasks", ()) or getattr(
        asyncio.tasks, "_scheduled_tasks", ()
    )
    while True:
        with contextlib.suppress(RuntimeError):  # another thread has just made one
            return {task for task in list(every) if not task.done()}


def _left_behind(
    before: tuple[dict[str, str], set[str], set[threading.Thread], set[asyncio.Task[Any]]],
) -> list[str]:
    descriptors, children, threads, tasks = before
    left = [
        f"descriptor {number}: {target}"
        for number, target in _descriptors().items()
        if descriptors.get(number) != target
    ]
    left += [f"process {child}" for child in _children() - children]
    left += [f"task {task!r}" for task in _tasks() - tasks]
    for thread in set(threading.enumerate()) - threads:
        thread.join(_LAST_BREATH)
        if thread.is_alive():
            left.append(f"thread {thread!r}")
    return left


def _ended_processes() -> tuple[int, int]:
    """Return figures that grow whenever the parent of a process learns that it ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_minflt, children.ru_majflt


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves a task, thread, child process or open descriptor fails.

    What fixtures of a wider scope hold is there before and after. A test that starts processes
    fails if `make unit` would run it.
    """
    before = _descriptors(), _children(), set(threading.enumerate()), _tasks()
    ended = _ended_processes()
    yield
    left = _left_behind(before)
    if _ended_processes() != ended:
        marks = {mark.name for mark in request.node.iter_markers()}
        if not marks & _NOT_IN_UNIT:
            pytest.fail("starts a process: mark it processes")
    until = monotonic() + _LAST_BREATH
    while left and monotonic() < until:
        # What only waits to be collected is not left, nor what a server's thread is closing.
        gc.collect()
        left = _left_behind(before)
    if left:
        pytest.fail("left behind: " + "; ".join(left))


@pytest.fixture
def version(request: pytest.FixtureRequest) -> str:
    """Each version of smtpd in turn."""
    chosen: str = request.param
    need(unavailable(chosen))
    return chosen


class Logbook:
    """A log, and what is in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.now = 1000.0
        self.log = Log(fd=self.fd, clock=lambda: self.now)

    @property
    def lines(self) -> list[str]:
        return self._path.read_text("ascii").splitlines()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps on an event loop; for how many seconds each would have."""
    asked: list[float] = []
    pause = asyncio.sleep

    async def sleep(delay: float, result: object = None) -> object:
        if delay > 0:
            asked.append(delay)
        return await pause(0, result)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return asked


@pytest.fixture
def logbook(tmp_path: Path) -> Iterator[Logbook]:
    """A log that can be read."""
    book = Logbook(tmp_path / "log")
    yield book
    os.close(book.fd)
