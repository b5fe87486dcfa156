#!/usr/bin/env python3
"""The builder of the ports for FreeBSD and OpenBSD from an sdist and its wheel.

It adds the version, distinfo and OpenBSD's packing list to the files in freebsd/ and openbsd/.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import shutil
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
#: As in make_pkg.
EPOCH = 1580601600
COMPLETIONS = {
    "bash": "share/bash-completion/completions",
    "fish": "share/fish/vendor_completions.d",
    "zsh": "share/zsh/site-functions",
}
#: OpenBSD's packages of single filters, with which ours conflicts if it has a file of that name.
SINGLES = ("admdscrub", "dkimsign", "dnsbl", "rspamd", "senderscore", "spamassassin", "spfgreylist")


def freebsd_distinfo(sdist: Path) -> str:
    """Return FreeBSD's distinfo: the size and checksum of the sdist."""
    content = sdist.read_bytes()
    date = os.environ.get("SOURCE_DATE_EPOCH") or EPOCH
    return (
        f"TIMESTAMP = {date}\n"
        f"SHA256 ({sdist.name}) = {hashlib.sha256(content).hexdigest()}\n"
        f"SIZE ({sdist.name}) = {len(content)}\n"
    )


def openbsd_distinfo(sdist: Path) -> str:
    """Return OpenBSD's distinfo."""
    content = sdist.read_bytes()
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return f"SHA256 ({sdist.name}) = {digest}\nSIZE ({sdist.name}) = {len(content)}\n"


def _versioned(name: str) -> str:
    """Replace the version in a name by its variable."""
    return re.sub(r"^(\w+)-[^/]+\.dist-info/", r"\1-${MODPY_DISTV}.dist-info/", name)


def _of_wheel(names: list[str]) -> list[str]:
    """Return lines for the wheel's files, the bytecode of its modules, and the directories.

    The port builds a wheel without scripts, hence without entry_points.txt. The installer compiles
    each module twice: with and without assertions.
    """
    site = PurePosixPath("lib/python${MODPY_VERSION}/site-packages")
    entries = set()
    for name in names:
        if name.endswith("/entry_points.txt"):
            continue
        path = site / _versioned(name)
        entries.add(str(path))
        entries.update(f"{above}/" for above in path.parents if site in above.parents)
        if path.suffix == ".py":
            cache = f"{path.parent}/${{MODPY_PYCACHE}}"  # ends with a slash
            entries.add(cache)
            for extension in ("pyc", "${MODPY_PYOEXTENSION}"):
                entries.add(f"{cache}{path.stem}.${{MODPY_PYC_MAGIC_TAG}}{extension}")
    return sorted(entries)


def _examples(source: Path) -> list[str]:
    """Return the names of the examples and of their directories."""
    ours, learning = source / "docs/examples", source / "packaging/dovecot"
    names = [path.name for path in ours.iterdir()]
    names += ["dovecot/", *(f"dovecot/{path.name}" for path in learning.iterdir())]
    return sorted(names)


def _completions(source: Path, shell: str) -> list[str]:
    """Return the completion files of a shell, and their directories."""
    directory = PurePosixPath(COMPLETIONS[shell])
    above = [f"{each}/" for each in (directory, *directory.parents) if len(each.parts) > 1]
    files = sorted((source / "packaging/completions" / shell).iterdir())
    return [*reversed(above), *(str(directory / file.name) for file in files)]


def packing_list(wheel: Path, source: Path) -> str:
    """Return OpenBSD's pkg/PLIST."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    filters = sorted(name for name in project["scripts"] if name.startswith("filter-"))
    tools = sorted(project["scripts"].keys() - set(filters))
    lines = [
        f"@conflict opensmtpd-{name}-*"
        for name in filters
        if name.removeprefix("filter-") in SINGLES
    ]
    lines += [f"bin/{name}" for name in tools]
    lines += _of_wheel(names)
    lines += ["libexec/smtpd/", *(f"libexec/smtpd/{name}" for name in [*filters, *tools])]
    pages = sorted((source / "docs/man").glob("*.[1-9]"), key=lambda page: (page.suffix, page))
    lines += [f"@man man/man{page.suffix[1:]}/{page.name}" for page in pages]
    read = sorted(["README.md", *(page.name for page in (source / "docs").glob("*.md"))])
    lines += _completions(source, "bash")
    lines += ["share/doc/pkg-readmes/${PKGSTEM}", "share/doc/smtpd-filters/"]
    lines += [f"share/doc/smtpd-filters/{name}" for name in read]
    lines += ["share/examples/smtpd-filters/"]
    lines += [f"share/examples/smtpd-filters/{name}" for name in _examples(source)]
    lines += [*_completions(source, "fish"), *_completions(source, "zsh")]
    scripts = ("journal", "web")  # pkg/smtpd_filters_*.rc
    lines += [f"@rcscript ${{RCDIR}}/smtpd_filters_{name}" for name in scripts]
    lines += ["@mode 0750", "@owner _smtpd", "@group _smtpd", "@sample /var/db/smtpd-filters/"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both ports below the output directory and print their paths."""
    parser = argparse.ArgumentParser(description="Complete the ports.")
    parser.add_argument("--source", type=Path, default=HERE.parent, help="the sources")
    parser.add_argument("sdist", type=Path)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("output", type=Path, help="a directory")
    options = parser.parse_args()

    project = tomllib.loads((options.source / "pyproject.toml").read_text())["project"]
    version = project["version"]
    for system in ("freebsd", "openbsd"):
        port = options.output / system
        shutil.rmtree(port, ignore_errors=True)
        shutil.copytree(HERE / system, port)
        makefile = (port / "Makefile").read_text()
        (port / "Makefile").write_text(makefile.replace("@VERSION@", version))
        print(port)
    (options.output / "freebsd/distinfo").write_text(freebsd_distinfo(options.sdist))
    (options.output / "openbsd/distinfo").write_text(openbsd_distinfo(options.sdist))
    plist = packing_list(options.wheel, options.source)
    (options.output / "openbsd/pkg/PLIST").write_text(plist)


if __name__ == "__main__":
    main()
