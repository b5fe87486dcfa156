"""The loader of filter classes by the `use` of a chain file, including the operator's own code.

A name is that of a filter of this package, or of an entry point of another distribution in the
group `smtpd_filters.filters`.

Invariants
----------
*Trusted*: a file is executed, or decides what is executed, only if no user but root and the current
user can have written it. smtpd requires the same of its files with secrets.
*Read once*: the content of a file that was checked is the content that runs.
"""

from __future__ import annotations

import os
import stat
import sys
from functools import partial
from importlib import import_module

from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter
from smtpd_filters.runtime.log import fold_traceback
from smtpd_filters.settings.declare import listed, suggest
from smtpd_filters.settings.files import read_file
from smtpd_filters.settings.quoting import printable, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType
    from typing import TypeGuard

BUILT_IN = "smtpd_filters.filters"
#: Bytes of a file.
LARGEST = 4 << 20


class UnknownFilterError(ConfigError):
    """No filter has this name; `known` are the names of those that there are."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.known = known
        #: The name of a known filter that is nearly the same; "" if there is none.
        self.near = suggest(name.removeprefix("filter-"), known)
        super().__init__(f"no filter {quote(name)}{self.near or listed(known)}")


def find(used: str, others: Iterable[str] = ()) -> type[Filter]:
    """Return a filter's class by `NAME`, `MODULE:CLASS`, `PATH` or `PATH:CLASS`.

    Raises UnknownFilterError for an unknown name, which may be nearly one of `others`, too, and
    ConfigError for any failure of loading a module.
    """
    try:
        if "/" in used or used.partition(":")[0].endswith(".py"):
            return _load_file(used)
        if ":" in used:
            module, _, name = used.partition(":")
            return _class_of(import_module(module), name)
        return _load_named(used, others)
    except ConfigError:
        raise
    except ImportError as error:
        raise ConfigError(f"{printable(used)}: {' '.join(str(error).split())}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a module may raise anything
        raise ConfigError(f"{printable(used)}: {fold_traceback(error)}") from None


def _load_named(name: str, others: Iterable[str]) -> type[Filter]:
    module = f"{BUILT_IN}.{name.replace('-', '_')}"
    homes = (module, f"{module}.policy")  # that of a package's policy
    if name.replace("-", "").isalnum():
        try:
            values = vars(import_module(module)).values()
        except ModuleNotFoundError as error:
            if error.name != module:
                raise  # a module that it imports is missing
        else:
            # The first class; further ones with the same name are variants of it.
            for value in values:
                if _is_filter(value) and value.name == name and value.__module__ in homes:
                    return value
    from .distributions import GROUP, entry_points_of  # start-up time
    from .listing import discover

    for entries, _, _ in entry_points_of(sys.path):
        for entry in entries.select(group=GROUP, name=name):
            cls = entry.load()
            if _is_filter(cls):
                return cls
            raise ConfigError(f"the entry point {quote(name)} is not a filter")
    raise UnknownFilterError(name, [*others, *(cls.name for cls in discover()[0])])


def _load_file(used: str) -> type[Filter]:
    path, colon, name = used.rpartition(":")
    if not colon or not name.isidentifier():
        path, name = used, ""
    if not os.path.isabs(path):  # noqa: PTH117  # start-up time
        raise ConfigError(
            f"{printable(path)}: not an absolute path; give its whole path, as in "
            "/etc/mail/filters/x.py:Class"
        )
    module = type(sys)(path)
    module.__file__ = path
    code = compile(read_safely(path), path, "exec")
    sys.modules[path] = module  # dataclasses and others look a class's module up
    exec(code, vars(module))  # noqa: S102  # Trusted
    return _class_of(module, name)


def _class_of(module: ModuleType, name: str) -> type[Filter]:
    """Return a module's class by name, by default the only filter that the module defines."""
    shown = printable(module.__name__)
    if name:
        found = getattr(module, name, None)
        if _is_filter(found):
            return found
        raise ConfigError(f"{shown}: no filter class {quote(name)}")
    own = [
        value
        for value in vars(module).values()
        if _is_filter(value) and value.__module__ == module.__name__
    ]
    if len(own) == 1:
        return own[0]
    if not own:
        raise ConfigError(f"{shown}: no filter class")
    names = ", ".join(cls.__name__ for cls in own)
    raise ConfigError(f"{shown}: several filters; choose one with {shown}:CLASS: {names}")


def _is_filter(value: object) -> TypeGuard[type[Filter]]:
    return isinstance(value, type) and issubclass(value, Filter) and value is not Filter


def read_safely(path: str) -> bytes:
    """Read a file that decides what code runs; raise ConfigError if it fails or isn't *Trusted*."""
    return read_file(path, LARGEST, check=partial(_check_permissions, path))


def _check_permissions(path: str, status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise ConfigError(f"{path}: its owner is neither root nor the current user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path}: users other than its owner can write to it: chmod go-w {path}")
    folder = os.path.dirname(path) or "."  # noqa: PTH120  # as above
    mode = os.stat(folder).st_mode  # noqa: PTH116  # as above
    # In a sticky directory only owners can replace files.
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(f"{path}: every user can write to its directory: chmod o-w {folder}")
