"""The parser of smtpd-filters.toml(5): filters with their settings, and chains of filters.

A filter is declared by a table `[filter.NAME]`, whose keys are its flags without the dashes; a
filter with default settings needs no table. `use` is the filter's class if NAME isn't the name of a
filter: the name of an executable without `filter-`; an importable `MODULE:CLASS`; or `PATH:CLASS`.

Invariants
----------
*One line*: an error is a ConfigError of one line that names the file, the table and the key, and
suggests the closest known name for an unknown one; for invalid TOML, the line and the column.
*Trusted*: the file decides which code runs. It is read only if no user but root and the current
user can have written it; the same holds for a file with the operator's own filter. smtpd requires
the same of its files with secrets.
*Lean*: only the modules and the tables of a chain's own filters are loaded.
"""

from __future__ import annotations

import re
from copy import copy

from smtpd_filters.errors import ConfigError, first_of
from smtpd_filters.main import make
from smtpd_filters.scoring.rules import FilterRules, Rules, RuleSettings
from smtpd_filters.settings import (
    LIST,
    TEXT,
    PolicySettings,
    ProcessSettings,
    Settings,
    from_mapping,
    option,
    policy_options,
)
from smtpd_filters.settings.declare import nearest
from smtpd_filters.settings.quoting import printable, quote
from smtpd_filters.tables.source import MARK

from .chain_use import UnknownFilterError, find, read_safely

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from smtpd_filters.filter import Filter

    Table = Mapping[str, Any]

#: The start of an assignment, up to its value or the first element of an array.
_ASSIGNMENT = re.compile(r"\s*(?P<key>[A-Za-z0-9_-]+)\s*=\s*(?P<array>\[\s*)?")
#: The header of a table.
_HEADER = re.compile(r"\s*(\[[^\[\]]*\])")
#: The start of an error about a table, and mostly a key, behind the path of the file. Settings of
#: older filters are named as their flags, with a hyphen.
_NAMED = re.compile(
    r": \[(?P<table>[^\[\]]+)\]: (?:(?:unknown key \")?-?(?P<key>[A-Za-z0-9_-]+)[:\"])?"
)
#: A character that starts neither a string nor an array nor a table.
_BARE = re.compile(r"""[^\s"'\[\]{}#,]""")
_SWITCHES = {"yes": "true", "on": "true", "true": "true"}
_SWITCHES |= dict.fromkeys(("no", "off", "false"), "false")
#: What some texts of tomllib mean.
_PLAINER = {
    "Cannot overwrite a value": "given twice",
    "Illegal character '\\n'": "the quote at the end of the text is missing",
}
#: The key of a filter's table that isn't a setting of the filter.
USE = "use"


class ChainSettings(RuleSettings, ProcessSettings):
    """The keys of a chain's table."""

    filters = option(
        LIST(TEXT),
        required=True,
        help="The names of its filters, in the order in which they are asked.",
    )


class Declared:
    """A filter that the file declares."""

    __slots__ = ("kind", "name", "own", "policy", "rules", "where")

    def __init__(
        self, name: str, table: Table | None, where: str, others: Iterable[str] = ()
    ) -> None:
        """Parse the filter's table; this loads its module and its tables.

        `others` are additional names to suggest for an unknown one. Raises ConfigError.
        """
        self.name = name
        alone = table is None
        table = table or {}
        #: The filter's class.
        self.kind = _kind_of(name, table, where, others, alone=alone)
        if alone:
            where = f"{where}: {name}"
        self.where = where
        policy = policy_options(self.kind.outcomes(), self.kind.on_error, self.kind.deadline)
        keys = {key: value for key, value in table.items() if key != USE}
        _refuse_misplaced(keys, self.kind.Options, where)
        wrong: list[ConfigError] = []
        # A filter's own key of the same name comes first.
        of_chain = {
            key: keys.pop(key)
            for key in _keys_of(FilterRules) - _keys_of(self.kind.Options)
            if key in keys
        }
        #: What becomes of its decisions in the chain.
        self.rules = FilterRules()
        try:
            self.rules = from_mapping(FilterRules, of_chain, where)
        except ConfigError as error:
            wrong.append(error)
        #: Its own settings.
        self.own: Settings
        #: The settings that every filter has.
        self.policy: PolicySettings
        try:
            self.own = from_mapping(self.kind.Options, keys, where, beside=[policy, FilterRules])
        except ConfigError as error:
            wrong.append(error)
        try:
            # Unknown keys are reported already.
            known = {key: value for key, value in keys.items() if key in _keys_of(policy)}
            self.policy = from_mapping(policy, known, where)
        except ConfigError as error:
            wrong.append(error)
        if wrong:
            raise first_of(wrong)

    def make(self) -> Filter:
        """Return the filter, with its name in the file."""
        filter_ = make(self.kind, self.own)
        filter_.name = self.name
        return filter_


def _kind_of(
    name: str, table: Table, where: str, others: Iterable[str], *, alone: bool
) -> type[Filter]:
    """Return the class of a filter, which has its name or that of `use`. Raises ConfigError."""
    used = table.get(USE, name)
    if type(used) is not str or not used:
        raise ConfigError(f"{where}: {USE}: expected the name of a filter, as a string")
    try:
        return find(used, others)
    except ConfigError as error:
        text = f"{USE}: {error}" if USE in table else str(error)
        unknown = isinstance(error, UnknownFilterError) and not error.near
        if unknown and not alone and USE not in table:
            text = f'{text}; a name of your own requires {USE} = "..."'
        raise ConfigError(f"{where}: {text}") from None


class ChainFile:
    """A parsed file, whose tables have the right types but are not checked further."""

    def __init__(self, path: str, content: str) -> None:
        """Parse the content; raise ConfigError if it is invalid."""
        import tomllib  # start-up time of --help

        self.path = path
        self.content = content
        try:
            top = tomllib.loads(content)
        except ValueError as error:  # TOMLDecodeError, or a number too long for Python
            raise ConfigError(_with_position(path, content, printable(str(error)))) from None
        except RecursionError:
            raise ConfigError(f"{path}: nested too deeply") from None
        self._filters = self._tables(top, "filter")
        self._chains = self._tables(top, "chain")
        self._top = {key: value for key, value in top.items() if key not in {"filter", "chain"}}
        for key in self._top:
            if key not in _process_keys():
                near = nearest(key.replace("_", "-"), ("filter", "chain", *_process_keys()))
                raise ConfigError(f"{path}: unknown key {quote(key)}{near}")
        from_mapping(ProcessSettings, self._top, path)
        if not self._chains:
            raise ConfigError(
                f"{path}: no chain: a table [chain.NAME] with filters = [...] is required"
            )

    @classmethod
    def read(cls, path: str) -> ChainFile:
        """Read and parse a file; raise ConfigError if that fails or it isn't *Trusted*."""
        try:
            return cls(path, read_safely(path).removeprefix(MARK).decode())
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{path}:{line}: not UTF-8") from None

    def with_changes(self, kind: str, name: str, changes: Mapping[str, object]) -> ChainFile:
        """Return a copy with other values for keys of `[KIND.NAME]`; None stands for no value."""
        tables = self._chains if kind == "chain" else self._filters
        table = {**tables.get(name, {}), **changes}
        table = {key: value for key, value in table.items() if value is not None}
        changed = copy(self)
        setattr(changed, "_chains" if kind == "chain" else "_filters", {**tables, name: table})
        return changed

    @property
    def chains(self) -> list[str]:
        """The names of the chains."""
        return list(self._chains)

    def chain(self, name: str) -> str:
        """Return the name of a chain, by default of the only one; raise ConfigError if unknown."""
        if not name:
            if len(self._chains) > 1:
                known = ", ".join(map(printable, self._chains))
                raise ConfigError(f"{self.path}: --chain is required, there are several: {known}")
            return next(iter(self._chains))
        if name not in self._chains:
            raise ConfigError(
                f"{self.path}: no [chain.{printable(name)}]{nearest(name, self._chains)}"
            )
        return name

    def process(self, name: str) -> ChainSettings:
        """Return the settings of a chain and its process, from its table and the file's top."""
        where = f"{self.path}: [chain.{printable(name)}]"
        table = self._chains[name]
        try:
            chain = from_mapping(ChainSettings, table, where)
        except ConfigError as error:
            raise self._all_located(error) from None
        if not chain.filters:
            raise self.located(ConfigError(f"{where}: filters: at least one is required"))
        for at, each in enumerate(chain.filters):
            if each in chain.filters[:at]:
                wrong = (
                    f"{where}: filters: {quote(each)} is given twice (give one another name, "
                    f'with {USE} = "...")'
                )
                raise self.located(ConfigError(wrong))
        return from_mapping(ChainSettings, {**self._top, **table}, where)

    def rules(self, chain: str, declared: Iterable[Declared]) -> Rules:
        """Return the rules of a chain with these filters, those it consists of."""
        filters = {each.name: each.rules for each in declared if each.rules.given}
        return Rules(self.process(chain), filters)

    def _all_located(self, error: ConfigError) -> ConfigError:
        """Return an error and its `others`, each with its place."""
        located = [self.located(each) for each in (error, *error.others)]
        located[0].others = tuple(located[1:])
        return located[0]

    def located(self, error: ConfigError) -> ConfigError:
        """Return an error with the number of the line of the key or table that it names."""
        found = _NAMED.match(str(error).removeprefix(self.path))
        if not found:
            return error
        line = _line_of(self.content, found["table"], found["key"])
        if not line:
            return error
        return ConfigError(f"{self.path}:{line}{str(error).removeprefix(self.path)}")

    def declared(self, name: str) -> list[Declared]:
        """Parse the filters of a chain, in order."""
        return [self.filter(each, name) for each in self.process(name).filters]

    @property
    def filters(self) -> list[str]:
        """The names of the filters with a table."""
        return list(self._filters)

    def filter(self, name: str, chain: str) -> Declared:
        """Parse a filter; `chain` is the chain that names it, for errors if it has no table."""
        table = self._filters.get(name)
        where = f"{self.path}: [filter.{printable(name)}]"
        if table is None:
            where = f"{self.path}: [chain.{printable(chain)}]: filters"
        elif not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            wrong = f"{where}: a name consists of letters, digits, - and _"
            raise self.located(ConfigError(wrong))
        try:
            return Declared(name, table, where, () if table is not None else self._filters)
        except ConfigError as error:
            raise self._all_located(error) from None

    def _tables(self, top: Table, kind: str) -> dict[str, Table]:
        """Return the tables `[KIND.NAME]`."""
        found = top.get(kind, {})
        if isinstance(found, dict):
            for name, table in found.items():
                if not isinstance(table, dict):
                    raise ConfigError(
                        f"{self.path}: [{kind}]: {printable(name)} isn't a table (expected "
                        f"[{kind}.NAME])"
                    )
            return found
        raise ConfigError(f"{self.path}: {kind}: expected tables [{kind}.NAME]")


def _with_position(path: str, content: str, text: str) -> str:
    """Move the position that tomllib appends, "(at line 3, column 5)", to the front."""
    reason, _, place = text.rpartition(" (at ")
    if place == "end of document)":
        return f"{path}:{content.count(chr(10)) + 1}: {reason}"
    line, _, column = place.removeprefix("line ").rstrip(")").partition(", column ")
    if not (reason and line.isdigit() and column.isdigit()):
        return f"{path}: {text}"
    row = content.split("\n")[int(line) - 1]
    return f"{path}:{line}:{column}: {_reason_of(reason, row, int(column))}"


def _line_of(content: str, table: str, key: str | None) -> int:
    """Return the number of the line that sets a key of a table, or of the table's, or 0."""
    inside, found = False, 0
    for number, line in enumerate(content.split("\n"), 1):
        if header := _HEADER.match(line):
            inside = re.sub(r"[\s\"']", "", header[1]) == f"[{table}]"
            found = number if inside else found
        elif inside and (assigned := _ASSIGNMENT.match(line)) and assigned["key"] == key:
            return number
    return found


def _reason_of(reason: str, row: str, column: int) -> str:
    """Return the reason of an error: tomllib's text, or a plainer one for common mistakes.

    The value is left out, since it may be a secret.
    """
    if reason.startswith("Cannot declare ") and (header := _HEADER.match(row)):
        return f"{header[1]} is declared twice"
    found = _ASSIGNMENT.match(row)
    key = f"{found['key']}: " if found else ""
    wrong = row[column - 1 : column]
    no_value = reason == "Invalid value" and (not wrong or wrong == "#")
    if plain := "no value" if no_value else _PLAINER.get(reason):
        return f"{key}{plain}"
    bare = found and _BARE.match(row, found.end())
    if not bare and (reason != "Invalid value" or wrong in "\"'[{"):
        return f"{key}{reason}"
    if not found:
        return 'text without quotes; write "..."'
    value = row[found.end() :].partition("#")[0].strip().lower()
    if value in _SWITCHES:
        return f"{key}text without quotes; write {found['key']} = {_SWITCHES[value]}"
    example = '["...", "..."]' if found["array"] else '"..."'
    return f"{key}text without quotes; write {found['key']} = {example}"


def _keys_of(cls: type[Settings]) -> set[str]:
    return {key for declared in cls.options.values() for key in declared.toml_keys()}


def _process_keys() -> list[str]:
    return [declared.key for declared in ProcessSettings.options.values()]


def _refuse_misplaced(keys: Table, own: type[Settings], where: str) -> None:
    """Raise ConfigError for keys of the process in a filter's table."""
    known = {declared.key for declared in own.options.values()}
    for key in _process_keys():
        if key in keys and key not in known:
            raise ConfigError(f"{where}: {key} must be at the top of the file, or in [chain.NAME]")
