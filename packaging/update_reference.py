#!/usr/bin/env python3
"""The generator of the API reference, docs/reference.md, from docstrings and annotations.

A class or function is described by its docstring, an attribute by the comment with `#:` above it or
by that of the attribute it overrides. An attribute named in the docstring of its class needs none.
`tests/test_api_reference.py` fails if the page is out of date or a public name is not described.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import griffe

from smtpd_filters.protocol.vocabulary import HANDLERS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"
PACKAGE = "smtpd_filters"
#: The public modules with their names; without names, those of `__all__`.
MODULES: dict[str, tuple[str, ...]] = {
    "smtpd_filters": (),
    "smtpd_filters.errors": ("UnavailableError",),
    "smtpd_filters.runtime.coroutines": ("my_turn",),
    "smtpd_filters.settings": (
        *("TEXT", "REPLY", "SWITCH", "INTEGER", "NUMBER", "SECONDS", "SIZE", "PATH", "ENDPOINT"),
        *("LIST", "choice", "table", "Kind"),
    ),
    "smtpd_filters.tables": (),
    "smtpd_filters.addresses": (),
    "smtpd_filters.lookups.dns": ("Resolver",),
    "smtpd_filters.lookups.dns.names": ("reverse",),
    "smtpd_filters.lookups.http": ("Service",),
    "smtpd_filters.lookups.outcome": ("Found", "NotFound", "Unavailable", "MX"),
    "smtpd_filters.stores": (),
    "smtpd_filters.parts": ("Member",),
    "smtpd_filters.checks.exemptions": (
        *("Exempt", "exempt_option", "allow_option", "check_users_option", "exempted"),
        *("known_address", "client_address"),
    ),
    "smtpd_filters.scoring.rules": ("Rules", "RuleSettings", "FilterRules"),
    "smtpd_filters.testing": (),
    "smtpd_filters.testing.http": ("HTTPStub", "Answer", "Request", "BEHAVIOURS"),
    "smtpd_filters.testing.rspamd.stub": ("RspamdStub",),
    "smtpd_filters.testing.server": (
        *("Smtpd", "Delivered", "filter_command", "script_command", "file_path", "scratch_path"),
        *("password", "unavailable"),
    ),
}
HEAD = """\
# Reference

The interface of the package, made from the code by `make reference`. `smtpd_filters(3)` is the
overview, [writing-a-filter.md](writing-a-filter.md) the tutorial. Times are in seconds and sizes in
bytes, unless the description has another unit.
"""


def load() -> griffe.Module:
    """Read the package, without importing it."""
    loaded = griffe.load(
        PACKAGE, search_paths=[ROOT], try_relative_path=False, resolve_aliases=True
    )
    assert isinstance(loaded, griffe.Module)  # noqa: S101  # the package is no alias
    return loaded


def target(member: griffe.Object | griffe.Alias) -> griffe.Object:
    """Resolve an imported name to its definition."""
    return member.final_target if isinstance(member, griffe.Alias) else member


def description(thing: griffe.Object) -> str:
    """Return the docstring, the comment with `#:` above an attribute, or an option's help."""
    if thing.docstring:
        return markdown(inspect.cleandoc(thing.docstring.value))
    found: list[str] = []
    if isinstance(thing.filepath, Path) and thing.lineno:
        lines = thing.filepath.read_text("utf-8").splitlines()[: thing.lineno - 1]
        for line in map(str.strip, reversed(lines)):
            if not line.startswith("#:"):
                break
            found.insert(0, line[2:].strip())
    return markdown("\n".join(found)) or help_of(getattr(thing, "value", None))


def help_of(value: object) -> str:
    """Return the help of an option, which is the value of an attribute."""
    if isinstance(value, griffe.ExprCall) and str(value.function) == "option":
        for each in value.arguments:
            if isinstance(each, griffe.ExprKeyword) and each.name == "help":
                return str(ast.literal_eval(str(each.value)))
    return ""


def phase(thing: griffe.Object) -> str:
    """Return the description of a handler by its phase."""
    found = HANDLERS.get(thing.name)
    if found is None or not thing.parent or thing.parent.name != "Filter":
        return ""
    of = f", with {found.argument}" if found.argument else ""
    return f"The handler of the phase `{found.name}`{of}; registered where a filter defines it."


def overridden(thing: griffe.Object) -> str:
    """Return the description of the member that this one overrides."""
    if isinstance(thing.parent, griffe.Class):
        for base in thing.parent.mro():
            above = base.members.get(thing.name)
            if above is not None and (text := description(target(above))):
                return text
    return ""


def named_by_its_class(thing: griffe.Object) -> bool:
    """Return whether the docstring of an attribute's class names it."""
    of = thing.parent.docstring if isinstance(thing.parent, griffe.Class) else None
    return of is not None and bool(re.search(rf"`[^`\n]*\b{thing.name}\b", of.value))


def markdown(text: str) -> str:
    """Convert the headings and definitions of a docstring to Markdown."""
    text = re.sub(r"(?m)^(\S.*)\n-{3,}$", r"**\1**\n", text)

    def defined(match: re.Match[str]) -> str:
        return f"- **{match[1]}**: {inspect.cleandoc(match[2])}\n".replace("\n\n", "\n\n  ")

    text = re.sub(r"(?m)^(\w[^\n:]*)\n((?: {4}.*(?:\n|\Z)|\n(?= {4}))+)", defined, text)
    return text.replace("``", "`").strip()


def signature(thing: griffe.Object, name: str) -> str:
    """Return the signature or annotation."""
    if isinstance(thing, griffe.Function):
        words = ("classmethod", "staticmethod", "async")
        labels = [word for word in words if word in thing.labels]
        return f"{''.join(f'{label} ' for label in labels)}{thing.signature(name=name)}"
    if isinstance(thing, griffe.Class):
        made = thing.all_members.get("__init__")
        known = target(made) if made else None
        of = (
            known.signature(name=name, return_type=False)
            if isinstance(known, griffe.Function)
            else name
        )
        return f"class {of}"
    annotation, value = getattr(thing, "annotation", None), getattr(thing, "value", None)
    text = f"{name}: {annotation}" if annotation else name
    computed = "property" in thing.labels or thing.labels == {"instance-attribute"}
    return text if computed or value is None or len(str(value)) > 60 else f"{text} = {value}"


def members(cls: griffe.Class, known: set[str]) -> Iterator[tuple[str, griffe.Object]]:
    """Yield the public members, except those inherited from a base that the page describes."""
    for name, member in cls.all_members.items():
        thing = target(member)
        base = thing.parent.path if thing.parent else ""
        if not name.startswith("_") and (base == cls.path or base not in known):
            yield name, thing


class Reference:
    """The page, and the names without a description."""

    def __init__(self) -> None:
        self.package = load()
        self.bare: list[str] = []
        self.names: list[str] = []
        self._known = {thing.path for _, _, thing in self._public()}
        self.text = "\n\n".join(self._parts()) + "\n"

    def _public(self) -> Iterator[tuple[str, str, griffe.Object]]:
        for path, names in MODULES.items():
            module = self.package[path.removeprefix(f"{PACKAGE}.")] if "." in path else self.package
            for name in names or sorted(map(str, target(module).exports or ())):
                yield path, name, target(module[name])

    def _parts(self) -> Iterator[str]:
        yield HEAD.strip()
        described: set[str] = set()
        last = ""
        for module, name, thing in self._public():
            if thing.path in described:
                continue
            described.add(thing.path)
            if module != last:
                yield f"## {module}"
                last = module
            yield from self._part(f"### `{signature(thing, name)}`", f"{module}.{name}", thing)
            if isinstance(thing, griffe.Class):
                for inner, member in members(thing, self._known):
                    yield from self._part(
                        f"#### `{signature(member, f'{name}.{inner}')}`",
                        f"{module}.{name}.{inner}",
                        member,
                    )

    def _part(self, title: str, path: str, thing: griffe.Object) -> Iterator[str]:
        self.names.append(path)
        yield title
        if text := description(thing) or phase(thing) or overridden(thing):
            yield text
        elif not named_by_its_class(thing):
            self.bare.append(path)


def main() -> None:
    """Write the page."""
    PAGE.write_text(Reference().text, "utf-8")


if __name__ == "__main__":
    main()
