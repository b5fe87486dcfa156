"""Python libraries of this release of Debian, for tests that otherwise run with the newest ones.

usage: debian_libraries.py DIRECTORY

Links the libraries that the suite imports, and those that they import, into a directory, which is
put into PYTHONPATH. All of /usr/lib/python3/dist-packages there would replace the test tools too.
Prints the versions. Fails unless each library is imported from the directory.
"""

from __future__ import annotations

import compileall
import importlib
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

INSTALLED = Path("/usr/lib/python3/dist-packages")
#: By module: the package of Debian, and the name of its distribution.
LIBRARIES = {
    "aiohttp": ("python3-aiohttp", "aiohttp"),
    "cryptography": ("python3-cryptography", "cryptography"),
    "dkim": ("python3-dkim", "dkimpy"),
    "dns": ("python3-dnspython", "dnspython"),
    "jinja2": ("python3-jinja2", "Jinja2"),
    "nacl": ("python3-nacl", "PyNaCl"),
    "prometheus_client": ("python3-prometheus-client", "prometheus_client"),
    "redis": ("python3-redis", "redis"),
    "spf": ("python3-spf", "pyspf"),
}


def needed(packages: set[str]) -> set[str]:
    """Return packages and the packages of Python modules that they depend on."""
    providers: dict[str, str] = {}
    for line in _query("-W", "-f", "${Package}|${db:Status-Status}|${Provides}\n").splitlines():
        package, status, provides = line.split("|")
        if status == "installed":
            names = (package, *(each.split()[0] for each in provides.split(",") if each.strip()))
            providers |= dict.fromkeys(names, package)
    found: set[str] = set()
    new = packages
    while new:
        found |= new
        depends = _query("-W", "-f", "${Depends}, ", *sorted(new))
        # An alternative to a package is a newer Python.
        needs = {each.split()[0] for each in depends.split(",") if each.strip() and "|" not in each}
        new = {providers[name] for name in needs if name.startswith("python3-")} - found
    return found


def link(packages: set[str], directory: Path) -> None:
    """Link the modules of packages into an empty directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name in _query("-L", *sorted(packages)).splitlines():
        path = Path(name)
        if path.parent == INSTALLED:
            link = directory / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    # Without bytecode, pytest would take a compiler's warning about them for an error.
    for module in directory.glob("*.py"):
        compileall.compile_file(module, quiet=2)


def _query(*arguments: str) -> str:
    command = ("dpkg-query", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # ours
    return done.stdout


def main(directory: Path) -> int:
    """Link the libraries, and import each."""
    link(needed({package for package, _ in LIBRARIES.values()}), directory)
    sys.path.insert(0, str(directory))
    for module, (package, distribution) in LIBRARIES.items():
        try:
            file = importlib.import_module(module).__file__ or ""
        except ImportError as error:
            running = f"{sys.version_info[0]}.{sys.version_info[1]}"
            print(f"{package}: Python {running} cannot import it: {error}", file=sys.stderr)
            return 1
        if not Path(file).is_relative_to(directory):
            print(f"{package}: {module} is imported from {file}", file=sys.stderr)
            return 1
        print(distribution, version(distribution), end=" ")
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
