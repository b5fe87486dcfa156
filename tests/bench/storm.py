"""A storm of 1,000 failures on real servers: what a supervised filter's end costs clients and mail.

    python -m tests.bench.storm [--faults 1000] [--clients 100] [--filter NAME]... [--version 6.8]
    python -m tests.bench.storm --reloads 1000

Under the load of clients, programs of a supervised filter are killed, stopped, or made to write
nonsense or to use all memory, at random. At the end each accepted message must have been delivered
once and unaltered, and every other must have been refused with 4xx; otherwise the exit status is 1.
With `--unsupervised` the same filter runs without filter-supervise, and the time is shown until the
server is down. With `--reloads` nothing fails, but the programs are replaced so often, and no
client may notice. Needs root, as the end-to-end tests do.
"""

from __future__ import annotations

import argparse
import shlex
import smtplib
import sys
import time
from contextlib import suppress
from pathlib import Path

from smtpd_filters.testing.server import Smtpd, filter_command, unavailable
from smtpd_filters.testing.server.releases import VERSIONS
from tests.e2e.storm import MISBEHAVES, STOPS, Storm
from tests.e2e.test_supervise import ECHO
from tests.e2e.test_supervise_storm import INSIDE, LIBEXEC, MEMORY, RSPAMD, SENDERSCORE, daemon

BINDS = {INSIDE: Path(LIBEXEC)}
#: By name: the command, a part of it by which its processes are found, and what happens to them.
FILTERS = {
    "script": (shlex.join(ECHO), "misbehaving", MISBEHAVES),
    "whole": (shlex.join([*ECHO, "--whole"]), "misbehaving", MISBEHAVES),
    "trace": (filter_command("trace", "--detail", "headers"), "filter-trace", STOPS),
    "senderscore": (SENDERSCORE, "filter-senderscore", STOPS),
    "rspamd": (RSPAMD, "filter-rspamd", STOPS),
}


def supervised(version: str, name: str, options: argparse.Namespace) -> bool:
    """Run one storm; return whether no mail was lost, repeated or altered."""
    command, marker, signals = FILTERS[name]
    flags = ["--deadline", "5s", "--workers", str(options.workers)]
    if signals is MISBEHAVES:
        flags += MEMORY
    filters = {"stormy": filter_command("supervise", *flags, *shlex.split(command))}
    with Smtpd(version, filters=filters, binds=BINDS) as server, daemon(server.lab):
        storm = Storm(server, marker, signals)
        started = time.monotonic()
        result = storm.blow(options.faults, clients=options.clients, pause=options.pause)
        seconds = time.monotonic() - started
        try:
            storm.check(patience=1800)
            verdict = "no mail lost, repeated or altered"
        except AssertionError as error:
            verdict = f"FAILED: {str(error)[:200]}"
        print(
            f"{version} {name}: {result.faults} failures in {seconds:.0f} s, "
            f"{len(result.accepted)} accepted, {result.refused} refused for now, "
            f"slowest reply {result.slowest:.1f} s, to {result.slowest_to}: {verdict}",
            flush=True,
        )
        return not verdict.startswith("FAILED")


def reloaded(version: str, name: str, options: argparse.Namespace) -> bool:
    """Replace the programs under load; return whether no client noticed."""
    command, marker, _ = FILTERS[name]
    flags = ["--workers", str(options.workers)]
    filters = {"calm": filter_command("supervise", *flags, *shlex.split(command))}
    with Smtpd(version, filters=filters, binds=BINDS) as server, daemon(server.lab):
        storm = Storm(server, marker, ())
        started = time.monotonic()
        result = storm.reload(options.reloads, clients=options.clients)
        seconds = time.monotonic() - started
        try:
            assert result.refused == 0, f"{result.refused} refused"
            storm.check(patience=1800)
            verdict = "no session lost, no mail refused"
        except AssertionError as error:
            verdict = f"FAILED: {str(error)[:200]}"
        print(
            f"{version} {name}: {options.reloads} reloads in {seconds:.0f} s, "
            f"{len(result.accepted)} accepted: {verdict}",
            flush=True,
        )
        return not verdict.startswith("FAILED")


def unsupervised(version: str, name: str, clients: int) -> None:
    """Run the filter alone, and show how long the server lives after the first failure."""
    command, marker, signals = FILTERS[name]
    filters = {"stormy": command}
    with Smtpd(version, filters=filters, binds=BINDS) as server, daemon(server.lab):
        storm = Storm(server, marker, signals[:1])
        # Clients find a connection closed, or none.
        with suppress(OSError, smtplib.SMTPException), storm.clients(clients):
            while len(storm.result.accepted) < clients:
                time.sleep(0.01)
            while not storm.result.faults:
                storm.fail(0)
            started = time.monotonic()
            server.expect_end()
            seconds = time.monotonic() - started
        print(
            f"{version} {name}, alone: the server is down {seconds * 1000:.0f} ms after the first "
            f"failure, {len(storm.result.accepted)} accepted before",
            flush=True,
        )


def main() -> int:
    """Run the storms; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--pause", type=float, default=1.0, help="a program's life on average, s")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--filter", action="append", choices=FILTERS)
    parser.add_argument("--version", action="append", choices=VERSIONS)
    parser.add_argument("--unsupervised", action="store_true")
    parser.add_argument("--reloads", type=int, default=0, help="reload, and cause no failures")
    options = parser.parse_args()
    fine = True
    for version in options.version or VERSIONS:
        if reason := unavailable(version):
            print(f"{version}: left out: {reason}")
            continue
        for name in options.filter or FILTERS:
            if options.unsupervised:
                unsupervised(version, name, options.clients)
            elif options.reloads:
                fine &= reloaded(version, name, options)
            else:
                fine &= supervised(version, name, options)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
