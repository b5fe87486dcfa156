"""`smtpd-filters list`: the installed filters, and the phases and reports that they register.

A filter is a subclass of `Filter` in a module of `smtpd_filters.filters`, in the module `policy` of
a package there, or in an entry point of another distribution in the group `smtpd_filters.filters`.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module

from smtpd_filters import filters
from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter
from smtpd_filters.main import make_chain, set_up
from smtpd_filters.protocol.vocabulary import PHASES, REPORTS
from smtpd_filters.runtime.log import Log
from smtpd_filters.settings import SWITCH, Pool, Settings, option
from smtpd_filters.stores.address import MEMORY

from .distributions import GROUP, entry_points_of
from .streams import print_json
from .verb import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.metadata import EntryPoint
    from typing import NoReturn, TypeGuard

_ORDER = {name: at for at, name in enumerate([*PHASES, *REPORTS])}
#: The lines of a message are between `data` and `commit`.
_ORDER["data-line"] = _ORDER["data"]


class Options(Settings):
    """The form of the list."""

    json = option(SWITCH, default=False, help="Print JSON.")


@dataclass(frozen=True, slots=True)
class Listed:
    """One filter; `remark` is the reason if these aren't the registrations of its default flags."""

    name: str
    executable: str
    description: str
    module: str
    phases: list[str]
    reports: list[str]
    remark: str = ""


def run(options: Options, _rest: list[str]) -> int:
    """Print the list."""
    found, broken = discover()
    listed = [describe(cls) for cls in found]
    if options.json:
        print_json([asdict(each) for each in listed])
    else:
        sys.stdout.write("\n".join(map(_show, listed)))
    for line in broken:
        sys.stderr.write(f"smtpd-filters: {line}\n")
    return 1 if broken else 0


def discover() -> tuple[list[type[Filter]], list[str]]:
    """Return the filters by name, and a line for each module that can't be loaded."""
    found: dict[str, type[Filter]] = {}
    broken: list[str] = []
    for where, load in _sources():
        try:
            classes = load()
        except Exception as error:  # noqa: BLE001  # a filter's module may raise anything
            broken.append(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}")
            continue
        for cls in classes:
            found.setdefault(cls.name, cls)
    return [found[name] for name in sorted(found)], broken


def _sources() -> Iterator[tuple[str, Callable[[], list[type[Filter]]]]]:
    for module in pkgutil.iter_modules(filters.__path__, f"{filters.__name__}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            yield module.name, partial(_of_module, module.name)
    for entries, distribution, fault in entry_points_of(sys.path):
        if fault:
            yield f"distribution {distribution}", partial(_fail, fault)
        for entry in entries.select(group=GROUP):
            yield f"entry point {entry.name}", partial(_of_entry, entry)


def _of_module(name: str) -> list[type[Filter]]:
    """Return the filters defined in a module, or in the module `policy` of a package."""
    values = vars(import_module(name)).values()
    homes = (name, f"{name}.policy")
    return [value for value in values if _is_filter(value) and value.__module__ in homes]


def _of_entry(entry: EntryPoint) -> list[type[Filter]]:
    """Return the filter of an entry point; raise TypeError if it isn't one."""
    cls = entry.load()
    if not _is_filter(cls):
        raise TypeError(f"{cls!r} is no Filter")
    return [cls]


def _fail(fault: Exception) -> NoReturn:
    raise fault


def _is_filter(value: object) -> TypeGuard[type[Filter]]:
    return isinstance(value, type) and issubclass(value, Filter) and value is not Filter


def describe(cls: type[Filter]) -> Listed:
    """Return what a filter registers."""
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # the filter never runs
        return _described(cls, Log(fd=nowhere.fileno()))


def _described(cls: type[Filter], log: Log) -> Listed:
    remark = ""
    try:
        # Without the files of stores, which root would create.
        ready = set_up(cls(cls.Options()), log, pool=Pool(store=MEMORY))
    except (ConfigError, TypeError) as error:
        # A required setting is missing: list every phase and report that it may register.
        ready = cls(cls.Options.__new__(cls.Options)), cls.on_error, cls.deadline
        remark = f"all that it may register: {error}"
    chain = make_chain([ready], log)
    return Listed(
        cls.name,
        f"filter-{cls.name}",
        cls.described(),
        cls.__module__,
        sorted(chain.phases, key=_place),
        sorted(chain.reports, key=_place),
        remark,
    )


def _place(name: str) -> tuple[int, str]:
    return _ORDER.get(name, len(_ORDER)), name


def _show(listed: Listed) -> str:
    lines = [
        f"{listed.executable}: {listed.description}",
        f"    phases   {' '.join(listed.phases) or '-'}",
        f"    reports  {' '.join(listed.reports) or '-'}",
    ]
    if listed.remark:
        lines.append(f"    ({listed.remark})")
    return "\n".join(lines) + "\n"


VERB = Verb(
    "list",
    run,
    options=Options,
    description="List the filters, with the phases and reports that they register at smtpd. Each "
    "phase is a round trip for each command that reaches it, each report a line. Flags have their "
    "defaults.",
    ending="Exit status: 0, or 1 when a filter can't be loaded.",
)
