"""The search for the store of a filter in smtpd.conf and in the chain file.

Only the flags of stores are read, so that a verb runs without the filter's tables. A file that is
missing or can't be read has no store; `smtpd-filters check` says what is wrong with it.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from smtpd_filters.addresses.tags import PLUS
from smtpd_filters.errors import ConfigError
from smtpd_filters.settings.files import read_file
from smtpd_filters.settings.quoting import quote
from smtpd_filters.stores.setting import StoreSetting, default_address
from smtpd_filters.tables.source import MARK

from .chain import PLACES as CHAIN_PLACES
from .chain_file import USE
from .chain_use import LARGEST
from .check import PLACES
from .smtpd_conf import chain_run_by, read
from .smtpd_conf.commands import file_name, flags_in, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from smtpd_filters.settings.declare import Option

#: The options that describe a store.
OPTIONS = StoreSetting().options


def find_store(
    name: str,
    flag: str,
    places: Sequence[str] = PLACES,
    chain_places: Sequence[str] = CHAIN_PLACES,
) -> dict[str, Any]:
    """Return the values of the options of the store that the filter `name` is configured with.

    `flag` has the store's address. The dictionary is empty if no file has the filter, or has it
    without an address, which is its default store if the flag is `--store`. In a chain that store
    has the name that the filter has there. Raises ConfigError if the files have several stores.
    """
    commands = list(_commands(places))
    texts = [each for words in commands if (each := _of_command(words, name, flag)) is not None]
    paths = _chain_files(commands)
    if not texts:
        paths = paths or [*chain_places]
    texts += [each for path in paths for each in _of_chain(path, name, flag)]
    found: list[dict[str, Any]] = []
    for each in texts:
        values = _parsed(each) if "store" in each else {}
        if values not in found and (values or flag == "store"):
            found.append(values)
    if len(found) > 1:
        default = f"{default_address(name).text}, the default"
        shown = ", ".join(each["store"].text if each else default for each in found)
        raise ConfigError(f"filter-{name} has several stores: --{flag} is required ({shown})")
    return found[0] if found else {}


def find_values(
    name: str,
    key: str,
    places: Sequence[str] = PLACES,
    chain_places: Sequence[str] = CHAIN_PLACES,
) -> Iterator[object]:
    """Yield the values of the setting `key`, given several times, of all filters of a kind.

    Those in smtpd.conf are texts. A file that is missing or can't be read has none.
    """
    commands = list(_commands(places))
    for words in commands:
        if f"filter-{name}" in map(file_name, words):
            yield from (value for flag, value in flags_in(words) if flag == f"--{key}")
    for path in _chain_files(commands) or chain_places:
        for _, keys in _filters_in(path, name):
            values = keys.get(key)
            yield from values if isinstance(values, list) else ()


def find_options(
    name: str,
    options: Mapping[str, Option],
    places: Sequence[str] = PLACES,
    chain_places: Sequence[str] = CHAIN_PLACES,
) -> dict[str, Any]:
    """Return the values of some options that the filters of a kind are configured with.

    One that no filter has is missing. Raises ConfigError if filters differ, or for an invalid one.
    """
    commands = list(_commands(places))
    texts = [
        {flag.removeprefix("--").replace("-", "_"): value for flag, value in flags_in(words)}
        for words in commands
        if _behind(words, name) is not None
    ]
    texts += [
        {key.replace("-", "_"): str(value) for key, value in keys.items()}
        for path in _chain_files(commands) or chain_places
        for _, keys in _filters_in(path, name)
    ]
    found = {}
    for option, declared in options.items():
        given = [
            _value(option, declared, each[option]) if option in each else None for each in texts
        ]
        values = {declared.default if each is None else each for each in given}
        flag = option.replace("_", "-")
        if len(values) > 1:
            shown = ", ".join(map(declared.kind.show, sorted(values)))
            raise ConfigError(f"filter-{name} has several values: --{flag} is required ({shown})")
        if any(each is not None for each in given):
            found[option] = values.pop()
    return found


def find_delimiter(places: Sequence[str] = PLACES) -> str:
    """Return the character of `smtp sub-addr-delim` in the first smtpd.conf."""
    for path in places:
        try:
            return read(path).sub_addr_delim
        except ConfigError:
            continue
    return PLUS


def _commands(places: Iterable[str]) -> Iterator[list[str]]:
    """Yield the words of the commands in the first smtpd.conf."""
    for path in places:
        try:
            programs = read(path).programs
        except ConfigError:
            continue
        for program in programs:
            yield words_of(program.command)
        return


def _chain_files(commands: Iterable[Sequence[str]]) -> list[str]:
    """Return the chain files that commands name."""
    return [named[0] for words in commands if (named := chain_run_by(words)) and named[0]]


def _of_command(words: Sequence[str], name: str, flag: str) -> dict[str, str] | None:
    """Return the texts of the options in a command of the filter, maybe under a supervisor.

    None is returned for a command of another filter.
    """
    flags = _behind(words, name)
    return None if flags is None else _of_words(flags, flag)


def _behind(words: Sequence[str], name: str) -> Sequence[str] | None:
    """Return the words behind the program of a filter; None for a command of another one."""
    for at, word in enumerate(words):
        if file_name(word) == f"filter-{name}" or _is_own(words, at, name):
            return words[at + 1 :]
    return None


def _is_own(words: Sequence[str], at: int, name: str) -> bool:
    """Return whether a word is the path of a program of the operator's own, not a flag's value."""
    before = words[at - 1] if at else ""
    is_program = "/" in words[at] and (not before.startswith("-") or before == "--")
    return is_program and file_name(words[at]).removesuffix(".py") == name


def _of_words(words: Sequence[str], flag: str) -> dict[str, str]:
    found = {}
    for spelt, value in flags_in(words):
        if (option := _option(spelt.removeprefix("--"), flag)) and spelt.startswith("--"):
            found[option] = value
    return found


def _of_chain(path: str, name: str, flag: str) -> Iterator[dict[str, str]]:
    """Yield the texts of the options of the filters of a kind in a chain file."""
    for instance, keys in _filters_in(path, name):
        texts = {
            option: str(value) for key, value in keys.items() if (option := _option(key, flag))
        }
        if flag == "store" and instance != name:
            texts.setdefault("store", default_address(instance).text)
        yield texts


def _filters_in(path: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the names and keys of the filters of a kind in a chain file."""
    try:
        text = read_file(path, LARGEST).removeprefix(MARK).decode()
        content: Mapping[str, Any] = tomllib.loads(text)
    except (ConfigError, ValueError):
        return
    filters = content.get("filter")
    for instance, keys in filters.items() if isinstance(filters, dict) else ():
        if isinstance(keys, dict) and _is_kind(str(keys.get(USE, instance)), instance, name):
            yield instance, keys


def _is_kind(used: str, instance: str, name: str) -> bool:
    """Return whether a filter is of the kind `name`, or the operator's own with that name."""
    return used == name or (instance == name and ("/" in used or ":" in used))


def _option(spelt: str, flag: str) -> str:
    """Return the option of a store that a flag or key is; "" for any other."""
    name = "store" if spelt == flag else spelt.replace("-", "_")
    return name if name in OPTIONS and (name != "store" or spelt == flag) else ""


def _parsed(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of options. Raises ConfigError for an invalid one."""
    return {name: _value(name, OPTIONS[name], text) for name, text in texts.items()}


def _value(name: str, option: Option, text: str) -> Any:
    """Return the value of an option. Raises ConfigError if it is invalid."""
    try:
        return option.kind.parse(text)
    except ValueError as error:
        flag = name.replace("_", "-")
        raise ConfigError(f"--{flag} of the filter: {quote(text)}: {error}") from None
