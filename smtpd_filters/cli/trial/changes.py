"""The settings of a chain file that can be tried, and changes of them.

Invariants
----------
*Inward*: see the package. A key that is unknown, or whose kind isn't `inward`, is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter
from smtpd_filters.filters.trace import Trace
from smtpd_filters.lookups.dns.setting import ResolverSetting
from smtpd_filters.sandbox import Needs
from smtpd_filters.scoring.rules import RuleSettings
from smtpd_filters.settings import SWITCH, PolicySettings
from smtpd_filters.settings.quoting import printable, quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from smtpd_filters.cli.chain_file import ChainFile, Declared
    from smtpd_filters.settings import Option, Settings

#: Characters of a value.
LONGEST = 200
CHAIN, FILTER = "chain", "filter"
#: Options of every filter that have no effect on a verdict that is repeated, or on its time only.
_UNTRIED = frozenset({"deadline"})
#: Options that also count for a filter of which the journal has the verdicts.
_FROM_OUTSIDE = frozenset({"dry_run"})


class Field(NamedTuple):
    """A setting that can be tried; texts are as on the command line."""

    key: str
    #: The value in the file, "" if it has none; and the default, "" if there is none.
    value: str
    default: str
    #: The words to choose from; none for a text.
    choices: tuple[str, ...]
    #: What a value is, and what it does.
    noun: str
    help: str


class Section(NamedTuple):
    """A table of the file, with the settings that can be tried."""

    #: "chain" or "filter", and the name.
    kind: str
    name: str
    fields: tuple[Field, ...]
    #: Why it is not asked again, "" if it is; and whether it asks name servers.
    stands_in: str
    asks: bool

    def repeats(self, *, looked_up: bool, changed: str) -> bool:
        """Return whether the verdicts of a filter are those of the journal.

        `looked_up` is whether there are recorded look-ups; `changed` the name of the filter that is
        changed, which is asked without them as well.
        """
        return bool(self.stands_in) or (self.asks and not looked_up and self.name != changed)


class Change(NamedTuple):
    """A change of one table: values as in TOML by key, None for no value."""

    kind: str
    name: str
    values: dict[str, Any]

    def text(self) -> str:
        """Return the lines of the file."""
        lines = [f"[{self.kind}.{self.name}]"]
        for key, value in self.values.items():
            lines.append(f"# without {key}" if value is None else f"{key} = {toml(value)}")
        return "\n".join(lines)


def sections(file: ChainFile, chain: str) -> list[Section]:
    """Return the tables of a chain and its filters. Raises ConfigError for an invalid file."""
    found = [Section(CHAIN, chain, tuple(_fields(_rules_of_chain(file, chain))), "", asks=False)]
    for declared in file.declared(chain):
        if not isinstance(declared.make(), Trace):
            why, asks = outside(declared)
            fields = tuple(_fields(_options(declared, stands_in=bool(why))))
            found.append(Section(FILTER, declared.name, fields, why, asks))
    return found


def _rules_of_chain(file: ChainFile, chain: str) -> Iterator[tuple[Option, Settings]]:
    process = file.process(chain)
    for declared in RuleSettings.options.values():
        yield declared, process


def _options(declared: Declared, *, stands_in: bool) -> Iterator[tuple[Option, Settings]]:
    """Yield the options of a filter, each with the settings that have its value."""
    groups: tuple[Settings, ...] = (declared.own, declared.policy, declared.rules)
    known: set[str] = set()
    for group in groups:
        for name, option in group.options.items():
            of_policy = name in PolicySettings.options and group is declared.policy
            if (of_policy and name in _UNTRIED) or option.key in known:
                continue
            known.add(option.key)
            if not stands_in or (of_policy and name in _FROM_OUTSIDE):
                yield option, group


def _fields(options: Iterator[tuple[Option, Settings]]) -> Iterator[Field]:
    for option, settings in options:
        kind = option.kind
        if not kind.inward or option.secret:
            continue
        value = vars(settings)[option.name]
        shown = kind.show(value) if option.name in settings.given and value is not None else ""
        default = "" if option.required or option.default is None else kind.show(option.default)
        choices = ("true", "false") if kind is SWITCH else getattr(kind, "choices", ())
        yield Field(option.key, shown, default, choices, kind.noun, option.help)


def outside(declared: Declared) -> tuple[str, bool]:
    """Return what a filter needs from outside, "" for nothing; and whether it asks name servers.

    What it would need is found in its declarations alone: nothing is set up.
    """
    filter_ = declared.make()
    cls = type(filter_)
    settings = vars(declared.own)
    asks = False
    of_resolvers: set[str] = set()
    for name in sorted(filter_.defined_shared()):
        shared = getattr(cls, name)
        if isinstance(shared, ResolverSetting):
            asks = True
            of_resolvers |= shared.options.keys()
        elif shared.has_default or settings.get(next(iter(shared.options), ""), shared) is not None:
            return "it asks a service, or keeps a memory, of its own", asks
    if cls.needs is not Filter.needs:
        return "it needs files, programs or services of its own", asks
    if filter_.remote_tables():
        return "it asks tables that are kept elsewhere", asks
    needs = Needs()
    for name, option in declared.own.options.items():
        if settings[name] is not None and name not in of_resolvers:
            option.kind.declare(settings[name], needs)
    if needs.internet or needs.sockets or needs.write or needs.runs or needs.receives:
        return "it connects to others, or writes files", asks
    return "", asks


def changed(file: ChainFile, chain: str, kind: str, name: str, texts: Mapping[str, str]) -> Change:
    """Return the change from texts of a form by key; a text "" stands for no value.

    Texts that are the present ones are no change. Raises ConfigError for a table, a key or a value
    that can't be tried.
    """
    for section in sections(file, chain):
        if (section.kind, section.name) == (kind, name):
            break
    else:
        raise ConfigError(f"no table [{printable(kind)}.{printable(name)}] of this chain")
    fields = {field.key: field for field in section.fields}
    options = _options_of(file, chain, section)
    values: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in fields:
            raise ConfigError(f"{quote(key)} is no setting that can be tried here")
        if text == fields[key].value:
            continue
        values[key] = _parsed(options[key], text) if text else None
    if not values:
        raise ConfigError("nothing is changed")
    return Change(kind, name, values)


def _options_of(file: ChainFile, chain: str, section: Section) -> dict[str, Option]:
    if section.kind == CHAIN:
        return {option.key: option for option, _ in _rules_of_chain(file, chain)}
    [declared] = [each for each in file.declared(chain) if each.name == section.name]
    return {
        option.key: option for option, _ in _options(declared, stands_in=bool(section.stands_in))
    }


def _parsed(option: Option, text: str) -> object:
    """Return a value as in TOML. Raises ConfigError."""
    try:
        if len(text) > LONGEST or not text.isprintable():
            raise ValueError(f"expected at most {LONGEST} printable characters")  # noqa: TRY301
        value = option.kind.to_toml(option.kind.parse(text))
        option.kind.from_toml(value)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{option.key}: {option.reason(error)}") from None
    return value


def toml(value: object) -> str:
    """Return a value as in a TOML file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {toml(each)}' for key, each in value.items())} }}"
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
