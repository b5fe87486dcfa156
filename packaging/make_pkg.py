#!/usr/bin/env python3
"""A builder of FreeBSD packages from a wheel and its sources, without FreeBSD's tools.

A package is a tar archive of +COMPACT_MANIFEST and +MANIFEST, both JSON, and the files under their
absolute names (pkg-create(8), "MANIFEST FILE DETAILS"). Name, comment, maintainer, licence,
dependencies, message and description are those of the port.

Builds are reproducible: files are sorted, belong to root and have the date of SOURCE_DATE_EPOCH.
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
FILTERS = f"{PREFIX}/libexec/opensmtpd"  # searched by FreeBSD's smtpd
STATE = "/var/db/smtpd-filters"
#: The shells' directories of completions, below the prefix.
COMPLETIONS = {
    "bash": "share/bash-completion/completions",
    "fish": "share/fish/vendor_completions.d",
    "zsh": "share/zsh/site-functions",
}
USER = "_smtpd"
#: The scripts that pkg runs, in the port's files pkg-*.
SCRIPTS = ("post-install", "pre-deinstall")
#: The date of files without SOURCE_DATE_EPOCH: hatchling's default.
EPOCH = 1580601600
EXECUTABLE, PLAIN = 0o755, 0o644


class File(NamedTuple):
    """One file of the package."""

    content: bytes
    mode: int = PLAIN


def variables(makefile: str) -> dict[str, str]:
    """Return the variables of a port's Makefile, with references between them expanded."""
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
    """Return the port's dependencies at run time, in the form of a manifest."""
    minor = python.replace(".", "")
    needed = {f"python{minor}": {"origin": f"lang/python{minor}", "version": python}}
    for entry in port["RUN_DEPENDS"].split():
        pattern, _, origin = entry.partition(":")
        name, _, version = pattern.partition(">=")
        name = name.replace("${PYTHON_PKGNAMEPREFIX}", f"py{minor}-")
        needed[name] = {"origin": origin.removesuffix("@${PY_FLAVOR}"), "version": version}
    return dict(sorted(needed.items()))


def messages(text: str) -> list[dict[str, str]]:
    """Parse a pkg-message: the texts and when they are shown."""
    pattern = r"\{ type: (\w+)\s+message: <<EOM\n(.*?)\nEOM\n\}"
    return [{"message": said, "type": kind} for kind, said in re.findall(pattern, text, re.DOTALL)]


def compiled(source: bytes, path: str) -> bytes:
    """Return the bytecode of a module, valid for any date of its file (PEP 552, unchecked hash)."""
    code = compile(source, path, "exec", dont_inherit=True)
    flags = (1).to_bytes(4, "little")
    return (
        importlib.util.MAGIC_NUMBER
        + flags
        + importlib.util.source_hash(source)
        + marshal.dumps(code)
    )


def modules(wheel: Path, python: str) -> dict[str, File]:
    """Return the wheel's files at their installed paths, with bytecode if this Python can make it.

    smtpd's user has no permission to write bytecode: without it, every start compiles every module.
    """
    site = f"{PREFIX}/lib/python{python}/site-packages"
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}" == python
    if not ours:
        print(
            f"make_pkg: no bytecode, so filters start slowly: needs Python {python}",
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
    """Return the executables."""
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
    """Return the rc scripts, with the variables of the port's SUB_LIST expanded."""
    files = {}
    for path in sorted((HERE / "freebsd/files").glob("*.in")):
        text = path.read_text().replace("%%PREFIX%%", PREFIX)
        text = text.replace("%%PYTHON_CMD%%", f"{PREFIX}/bin/python{python}")
        files[f"{PREFIX}/etc/rc.d/{path.stem}"] = File(text.encode(), EXECUTABLE)
    return files


def examples(source: Path) -> dict[str, Path]:
    """Return the examples by their installed names."""
    shown = [(source / "docs/examples", source / "docs/examples")]
    shown += [(source / "packaging", source / "packaging/dovecot")]
    return {
        str(path.relative_to(base)): path
        for base, directory in shown
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def documents(source: Path, package: str) -> dict[str, File]:
    """Return manual pages, documents, examples, completions and the licence."""
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
    """Return the compact manifest and the full one."""
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
    scripts = {name: (freebsd / f"pkg-{name}").read_text() for name in SCRIPTS}
    return short, {**short, "files": sums, "directories": {STATE: state}, "scripts": scripts}


def archive(
    members: dict[str, File], date: int, compact: dict[str, Any], whole: dict[str, Any]
) -> bytes:
    """Return the bytes of the package."""

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
    """Write the package and print its path."""
    parser = argparse.ArgumentParser(description="Make a FreeBSD package from a wheel.")
    parser.add_argument("--python", default="3.11", help="FreeBSD's default version (%(default)s)")
    parser.add_argument("--abi", default="FreeBSD:14:*", help="supported releases (%(default)s)")
    parser.add_argument("--source", type=Path, default=HERE.parent, help="the sources")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("output", type=Path, help="a directory")
    options = parser.parse_args()

    project = tomllib.loads((options.source / "pyproject.toml").read_text())["project"]
    makefile = (HERE / "freebsd/Makefile").read_text()
    port = variables(makefile.replace("@VERSION@", project["version"]))
    package = f"{port['PORTNAME']}-{port['DISTVERSION']}"
    if not options.wheel.name.startswith(f"{package.replace('smtpd-', 'smtpd_')}-"):
        sys.exit(f"make_pkg: {options.wheel.name}: expected a wheel of {package}")
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
