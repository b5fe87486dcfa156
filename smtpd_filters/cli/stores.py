"""The store of a filter, for verbs that show or change what the filter remembers.

Invariants
----------
*Not created*: a verb never creates a file, since a file of root's would be out of the filter's
reach; and it never renames one that is not a store, since a path may be mistyped.
*As its owner*: run by root, the process becomes the owner of the file before it opens it, so that
the files that SQLite creates beside it are the owner's as well. For a file of root's, it becomes
the owner of the directory, who may have put a link to any file there.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError, UnavailableError, os_reason
from smtpd_filters.settings import Settings, option
from smtpd_filters.settings.quoting import printable
from smtpd_filters.stores.setting import STORE, default_address, open_store

from . import PROG
from .store_search import OPTIONS as _OPTIONS
from .store_search import find_options, find_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import TypeVar

    from smtpd_filters.stores import Store

    Configured = TypeVar("Configured", bound="StoreOptions")

#: The exit status if the store fails: EX_TEMPFAIL of sysexits(3).
TEMPFAIL = 75


class StoreOptions(Settings):
    """The flags of a filter's store, named as the filter's own."""

    store = option(
        STORE,
        default=None,
        help="The store of the filter, as in its own flag. By default that of the filter in "
        "smtpd.conf(5) or smtpd-filters.toml(5); if none is given there, or there is no such "
        "filter, the filter's default. memory: can't be reached.",
    )
    store_password_file = _OPTIONS["store_password_file"]
    store_ca_file = _OPTIONS["store_ca_file"]
    store_prefix = _OPTIONS["store_prefix"]
    store_timeout = option(
        _OPTIONS["store_timeout"].kind, default=2.0, help="How long to wait for the store."
    )


def with_store(
    options: StoreOptions,
    name: str,
    work: Callable[[Store], Awaitable[int]],
    flag: str = "store",
) -> int:
    """Do some work with the store of the filter `name`; return the work's exit status.

    Without `--store` it is that of the filter in smtpd.conf or in the chain file, where `flag` has
    its address, or the filter's default. The status is TEMPFAIL if the store fails. Raises
    ConfigError if it can't be used.
    """
    values = {each: vars(options)[each] for each in StoreOptions.options}
    if values["store"] is None:
        found = find_store(name, flag)
        values |= {each: found[each] for each in found if each not in options.given}
    if values["store"] is None:
        values["store"] = default_address(name)
    address = values["store"]
    if address.scheme == "memory":
        raise ConfigError("--store: memory: is in the filter's process, where no other can read it")
    if address.scheme == "sqlite":
        _become_owner(address.path)

    async def opened() -> int:
        store = open_store(values, _note, guest=True)
        try:
            return await work(store)
        finally:
            await store.aclose()

    try:
        return asyncio.run(opened())
    except UnavailableError as error:
        _note(str(error))
        return TEMPFAIL


def as_configured(options: Configured, name: str, wanted: Iterable[str]) -> Configured:
    """Return options, some of which are also those of the filter `name`, with the filter's values.

    What is given remains, and with `--store` all does: that may be the store of another filter.
    Raises ConfigError if the filter's values are invalid, or filters have different ones.
    """
    if "store" in options.given:
        return options
    declared = {each: options.options[each] for each in wanted if each not in options.given}
    return options.replace(**find_options(name, declared))


def time_in_words(seconds: float) -> str:
    """Return a time in its two largest units."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 1:
        return f"{int(days)}d{int(hours % 24)}h"
    if hours >= 1:
        return f"{int(hours)}h{int(minutes % 60)}m"
    return f"{int(minutes)}m{int(seconds % 60)}s"


def _note(text: str) -> None:
    """Write a line to stderr; a server's error may be part of it."""
    sys.stderr.write(f"{PROG}: {printable(text)}\n")


def _become_owner(path: str) -> None:
    try:
        status = os.stat(path)  # noqa: PTH116  # a path as text
    except OSError as error:
        hint = (
            " (a filter with a store creates it when it starts)"
            if isinstance(error, FileNotFoundError)
            else ""
        )
        raise ConfigError(f"--store: {path}: {os_reason(error)}{hint}") from None
    if os.geteuid() != 0:
        return
    if status.st_uid == 0:
        status = os.stat(os.path.dirname(path))  # noqa: PTH116, PTH120  # a path as text
    if status.st_uid != 0:
        os.setgroups([status.st_gid])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)
