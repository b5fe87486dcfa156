#!/usr/bin/env python3
"""Make a FreeBSD package, without FreeBSD's tools, from a wheel and the sources it was built from.

A package is a tar archive: +COMPACT_MANIFEST and +MANIFEST first, both JSON, then the files under
their absolute names (pkg-create(8), "MANIFEST FILE DETAILS").  Name, comment, maintainer, licence
and dependencies are the port's; its message and description too.

The same input makes the same bytes: files are in order, belong to root and have the date of
SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import marshal
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PREFIX = "/usr/local"
FILTERS = f"{PREFIX}/libexec/opensmtpd"  # where FreeBSD's smtpd looks
STATE = "/var/db/smtpd-filters"
#: Where shells look for what they complete, below the prefix.
COMPLETIONS = {
    "bash": "share/bash-completion/completions",
    "fish": "share/fish/vendor_completions.d",
    "zsh": "share/zsh/site-functions",
}
USER = "_smtpd"
#: Nothing is older than this; it is also the default of hatchling.
EPOCH = 1580601600
EXECUTABLE, PLAIN = 0o755, 0o644


class File(NamedTuple):
    """One file of the package."""

    content: bytes
    mode: int = PLAIN


def variables(makefile: str) -> dict[str, str]:
    """The assignments of a port's Makefile, with what they refer to among each other put in."""
    joined = makefile.replace("\\\n", " ")
    found = {
        name: " ".join(value.split())
        for name, value in re.findall(r"(?m)^([A-Z_]+)[ \t]*=[ \t]*(.*)$", joined)
    }
    return {
        name: re.sub(r"\$\{([A-Z_]+)\}", lambda m: found.get(m[1], m[0]), value)
        for name, value in found.items()
    }


def dependencies(port: dict[str, str], python: str) -> dict[str, dict[str, str]]:
    """What the port needs to run, as a manifest says it."""
    minor = python.replace(".", "")
    needed = {f"python{minor}": {"origin": f"lang/python{minor}", "version": python}}
    for entry in port["RUN_DEPENDS"].split():
        pattern, _, origin = entry.partition(":")
        name, _, version = pattern.partition(">=")
        name = name.replace("${PYTHON_PKGNAMEPREFIX}", f"py{minor}-")
        needed[name] = {"origin": origin.removesuffix("@${PY_FLAVOR}"), "version": version}
    return dict(sorted(needed.items()))


def messages(text: str) -> list[dict[str, str]]:
    """What a pkg-message says, and when."""
    pattern = r"\{ type: (\w+)\s+message: <<EOM\n(.*?)\nEOM\n\}"
    return [{"message": said, "type": kind} for kind, said in re.findall(pattern, text, re.DOTALL)]


def compiled(source: bytes, path: str) -> bytes:
    """The bytecode of a module, valid whatever the date of its file (PEP 552, unchecked hash)."""
    code = compile(source, path, "exec", dont_inherit=True)
    flags = (1).to_bytes(4, "little")
    return (
        importlib.util.MAGIC_NUMBER
        + flags
        + importlib.util.source_hash(source)
        + marshal.dumps(code)
    )


def modules(wheel: Path, python: str) -> dict[str, File]:
    """What the wheel holds, where the interpreter finds it, with the bytecode if it can be made.

    smtpd's user could not write bytecode, and would compile every module at every start.
    """
    site = f"{PREFIX}/lib/python{python}/site-packages"
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}" == python
    if not ours:
        print(
            f"make_pkg: no bytecode: this is not Python {python}; filters will start slowly",
            file=sys.stderr,
        )
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith("/"):
                continue
            content = archive.read(name)
            path = f"{site}/{name}"
            files[path] = File(content)
            if ours and name.endswith(".py"):
                files[importlib.util.cache_from_source(path)] = File(compiled(content, path))
    return files


def launchers(source: Path, python: str) -> dict[str, File]:
    """The executables."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, str(HERE / "launchers.py"), "--root", root]
        command += ["--python", f"{PREFIX}/bin/python{python}"]
        command += ["--path", f"{PREFIX}/lib/python{python}/site-packages"]
        command += ["--filters", FILTERS, "--tools", f"{PREFIX}/bin"]
        command += [str(source / "pyproject.toml")]
        listed = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # our own program
        return {
            path: File(Path(root + path).read_bytes(), EXECUTABLE) for path in listed.stdout.split()
        }


def services(python: str) -> dict[str, File]:
    """The scripts for rc, with what the port's SUB_LIST puts in."""
    files = {}
    for path in sorted((HERE / "freebsd/files").glob("*.in")):
        text = path.read_text().replace("%%PREFIX%%", PREFIX)
        text = text.replace("%%PYTHON_CMD%%", f"{PREFIX}/bin/python{python}")
        files[f"{PREFIX}/etc/rc.d/{path.stem}"] = File(text.encode(), EXECUTABLE)
    return files


def examples(source: Path) -> dict[str, Path]:
    """The examples, by the names they are installed under."""
    shown = [(source / "docs/examples", source / "docs/examples")]
    shown += [(source / "packaging", source / "packaging/dovecot")]
    return {
        str(path.relative_to(base)): path
        for base, directory in shown
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def documents(source: Path, package: str) -> dict[str, File]:
    """Manual pages, what there is to read, the examples, what shells complete, the licence."""
    files = {
        f"{PREFIX}/share/man/man{page.suffix[1:]}/{page.name}.gz": File(
            gzip.compress(page.read_bytes(), mtime=0)
        )
        for page in (source / "docs/man").glob("*.[1-9]")
    }
    for page in (source / "README.md", *(source / "docs").glob("*.md")):
        files[f"{PREFIX}/share/doc/smtpd-filters/{page.name}"] = File(page.read_bytes())
    for name, example in examples(source).items():
        mode = EXECUTABLE if example.stat().st_mode & 0o100 else PLAIN
        files[f"{PREFIX}/share/examples/smtpd-filters/{name}"] = File(example.read_bytes(), mode)
    for path in (source / "packaging/completions").glob("*/*"):
        directory = COMPLETIONS[path.parent.name]
        files[f"{PREFIX}/{directory}/{path.name}"] = File(path.read_bytes())
    licence = (source / "LICENSE").read_bytes()
    files[f"{PREFIX}/share/licenses/{package}/LICENSE"] = File(licence)
    return files


def manifest(
    port: dict[str, str], options: argparse.Namespace, files: dict[str, File]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The short manifest and the whole one."""
    freebsd = HERE / "freebsd"
    short = {
        "name": port["PORTNAME"],
        "origin": f"mail/{port['PORTNAME']}",
        "version": port["DISTVERSION"],
        "comment": port["COMMENT"],
        "maintainer": port["MAINTAINER"],
        "www": port["WWW"],
        "abi": options.abi,
        "arch": options.abi.lower(),
        "prefix": PREFIX,
        "flatsize": sum(len(file.content) for file in files.values()),
        "licenselogic": "single",
        "licenses": [port["LICENSE"]],
        "desc": (freebsd / "pkg-descr").read_text().rstrip("\n"),
        "deps": dependencies(port, options.python),
        "categories": port["CATEGORIES"].split(),
        "users": [USER],
        "groups": [USER],
        "messages": messages((freebsd / "pkg-message").read_text()),
    }
    sums = {path: f"1${hashlib.sha256(file.content).hexdigest()}" for path, file in files.items()}
    state = {"uname": USER, "gname": USER, "perm": "0750"}
    return short, {**short, "files": sums, "directories": {STATE: state}}


def archive(
    members: dict[str, File], date: int, compact: dict[str, Any], whole: dict[str, Any]
) -> bytes:
    """The package."""

    def member(name: str, mode: int, owner: str, group: str) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.mode, info.mtime, info.uname, info.gname = mode, date, owner, group
        return info

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, file: File) -> None:
            info = member(name, file.mode, "root", "wheel")
            info.size = len(file.content)
            tar.addfile(info, io.BytesIO(file.content))

        for name, content in (("+COMPACT_MANIFEST", compact), ("+MANIFEST", whole)):
            text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
            add(name, File(text.encode()))
        for name, file in members.items():
            add(name, file)
        directory = member(STATE, 0o750, USER, USER)
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
    return lzma.compress(buffer.getvalue(), preset=6)


def main() -> None:
    """Make the package, and print its path."""
    parser = argparse.ArgumentParser(description="Make a FreeBSD package from a wheel.")
    parser.add_argument("--python", default="3.11", help="FreeBSD's default version (%(default)s)")
    parser.add_argument("--abi", default="FreeBSD:14:*", help="which releases (%(default)s)")
    parser.add_argument("--source", type=Path, default=HERE.parent, help="the sources")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("output", type=Path, help="a directory")
    options = parser.parse_args()

    project = tomllib.loads((options.source / "pyproject.toml").read_text())["project"]
    makefile = (HERE / "freebsd/Makefile").read_text()
    port = variables(makefile.replace("@VERSION@", project["version"]))
    package = f"{port['PORTNAME']}-{port['DISTVERSION']}"
    if not options.wheel.name.startswith(f"{package.replace('smtpd-', 'smtpd_')}-"):
        sys.exit(f"make_pkg: the port is of {package}, the wheel is {options.wheel.name}")
    files = {
        **modules(options.wheel, options.python),
        **launchers(options.source, options.python),
        **services(options.python),
        **documents(options.source, package),
    }
    files = dict(sorted(files.items()))
    date = int(os.environ.get("SOURCE_DATE_EPOCH") or EPOCH)
    made = archive(files, date, *manifest(port, options, files))
    path = options.output / f"{package}.pkg"
    path.write_bytes(made)
    print(path)


if __name__ == "__main__":
    main()
