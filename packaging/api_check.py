#!/usr/bin/env python3
"""The check of the public interface against that of the last release.

`packaging/api.txt` is the released interface as a stub: every name of `smtpd_filters.__all__` with
the public members of its classes. griffe compares it with the sources and reports changes that
break a filter's code: a removed name, a parameter that was removed, moved, renamed or became
required, a changed default. Additions are compatible.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import griffe

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "smtpd_filters"
SNAPSHOT = "packaging/api.txt"
HEAD = "# The interface of smtpd_filters VERSION, by packaging/api_check.py --write\n"


def load(root: Path) -> griffe.Module:
    """Read the package, without importing it."""
    loaded = griffe.load(
        PACKAGE, search_paths=[root], try_relative_path=False, resolve_aliases=True
    )
    assert isinstance(loaded, griffe.Module)  # noqa: S101  # the package is no alias
    return loaded


def target(member: griffe.Object | griffe.Alias) -> griffe.Object:
    """Resolve an imported name to its definition."""
    return member.final_target if isinstance(member, griffe.Alias) else member


def members(cls: griffe.Class) -> Iterator[griffe.Object]:
    """Yield the public members, and `__init__`."""
    for name, member in sorted(cls.all_members.items()):
        if name == "__init__" or not name.startswith("_"):
            yield target(member)


def stub(name: str, thing: griffe.Object, indent: str = "") -> Iterator[str]:
    """Yield the stub's lines for one definition."""
    if isinstance(thing, griffe.Class):
        bases = ", ".join(map(str, thing.bases))
        yield f"{indent}class {name}({bases}):" if bases else f"{indent}class {name}:"
        inner = indent + "    "
        lines = [line for each in members(thing) for line in stub(each.name, each, inner)]
        yield from lines or [f"{inner}..."]
    elif isinstance(thing, griffe.Function):
        made = thing.labels & {"classmethod", "staticmethod"}
        yield from (f"{indent}@{label}" for label in sorted(made))
        first = "" if not indent or "staticmethod" in made else "cls" if made else "self"
        signature = thing.signature().replace("(", f"({first}, " if first else "(", 1)
        keyword = "async def" if "async" in thing.labels else "def"
        yield f"{indent}{keyword} {signature.replace(', )', ')')}: ..."
    elif isinstance(thing, griffe.Attribute):
        # The value of an instance's attribute is known at run time only.
        has_value = thing.value is not None and thing.labels != {"instance-attribute"}
        value = f" = {thing.value}" if has_value and "property" not in thing.labels else ""
        annotation = thing.annotation or (None if value else "object")
        yield f"{indent}{name}{f': {annotation}' if annotation else ''}{value}"


def interface(package: griffe.Module, version: str) -> str:
    """Return the interface as a stub."""
    names = sorted(map(str, package.exports or ()))
    head = [HEAD.replace("VERSION", version).rstrip()]
    head += ["__all__ = [", *(f"    {name!r}," for name in names), "]"]
    lines = [line for name in names for line in ("", *stub(name, target(package[name])))]
    return "\n".join([*head, *lines]) + "\n"


def version_of(root: Path) -> str:
    """Return the version of the sources."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["version"])


def released(root: Path) -> tuple[str, str]:
    """Return the interface of the last release, and its version."""
    text = (root / SNAPSHOT).read_text("utf-8")
    found = re.match(re.escape(HEAD).replace("VERSION", r"([0-9.]+)"), text)
    if not found:
        raise SystemExit(f"{SNAPSHOT}: invalid: write it with packaging/api_check.py --write")
    return text, found[1]


def breakages(before: str, now: str) -> list[str]:
    """Return the incompatible changes between two interfaces, a line each."""
    old, new = (griffe.visit(PACKAGE, filepath=Path(SNAPSHOT), code=it) for it in (before, now))
    return [
        f"{found.obj.path}: {found.kind.value}: {found.old_value} -> {found.new_value}"
        for found in griffe.find_breaking_changes(old, new)
    ]


def main() -> int:
    """Print incompatible changes; exit with 1 if they need a new major version."""
    parser = argparse.ArgumentParser(description="Compare what smtpd_filters exports.")
    parser.add_argument("--root", type=Path, default=ROOT, help="the sources")
    parser.add_argument("--write", action="store_true", help="write the interface of a release")
    parser.add_argument("--print", action="store_true", help="print this interface")
    options = parser.parse_args()
    version = version_of(options.root)
    now = interface(load(options.root), version)
    if options.write:
        (options.root / SNAPSHOT).write_text(now, "utf-8")
    if options.print:
        sys.stdout.write(now)
    if options.write or options.print:
        return 0
    text, before = released(options.root)
    found = breakages(text, now)
    for line in found:
        print(f"since {before}: {line}")
    # CHANGELOG.md: an incompatible change requires a new major version.
    return 1 if found and int(version.split(".")[0]) <= int(before.split(".")[0]) else 0


if __name__ == "__main__":
    sys.exit(main())
