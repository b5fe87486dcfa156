"""A storm of 1,000 failures on real servers: what a supervised filter's end costs clients and mail.

    make storm [STORM_ARGS="[--faults 1000] [--clients 100] [--filter NAME]... [--version 6.8]"]
    make storm STORM_ARGS="--reloads 1000"

Under the load of clients, processes of a supervised program (`PROGRAMS` of `tests/e2e/storm.py`)
are killed, stopped, or made to write nonsense or half of a line, or to use all memory, at random.
At the end each accepted message must have been delivered once and unaltered, none of a client that
the program refuses may have been accepted, and every other must have been refused with 4xx;
otherwise the exit status is 1, also if a client has waited for longer than the deadline allows.
With `--unsupervised` the same filter runs without filter-supervise, and the time is shown until the
server is down. With `--reloads` nothing fails, but the programs are replaced so often, and no
client may notice. Needs root, as the end-to-end tests do.
"""

from __future__ import annotations

import argparse
import signal
import smtplib
import sys
import time
from contextlib import suppress

from smtpd_filters.testing.server import Smtpd, unavailable
from smtpd_filters.testing.server.releases import VERSIONS
from tests.e2e.load import Result
from tests.e2e.storm import PROGRAMS, Storm, arguments, rspamd, supervised

#: Seconds that the program may take to answer; a client waits twice as long for a message, and
#: `BUSY` seconds more if the machine is.
DEADLINE, BUSY = 5.0, 5.0


def stormed(version: str, name: str, options: argparse.Namespace) -> bool:
    """Run one storm; return whether no mail was lost, repeated or altered."""
    program = PROGRAMS[name]
    command = supervised(program, "--deadline", f"{DEADLINE:g}s", "--workers", str(options.workers))
    with Smtpd(version, **arguments(command)) as server, rspamd(server.lab):
        storm = Storm(server, program)
        started = time.monotonic()
        result = storm.blow(options.faults, clients=options.clients, pause=options.pause)
        seconds = time.monotonic() - started
        verdict = verdict_on(storm, "no mail lost, repeated, altered or accepted against a refusal")
        if result.slowest > 2 * DEADLINE + BUSY:
            verdict = f"FAILED: a client waited for {result.slowest:.1f} s; {verdict}"
        print(
            f"{version} {name}: {result.faults} failures in {seconds:.0f} s, "
            f"{_counts(result)}, slowest reply {result.slowest:.1f} s, to {result.slowest_to}: "
            f"{verdict}",
            flush=True,
        )
        return not verdict.startswith("FAILED")


def verdict_on(storm: Storm, fine: str) -> str:
    """Return `fine`, or what went wrong."""
    try:
        storm.check(patience=1800)
        assert storm.result.accepted, "nothing was accepted"
    except AssertionError as error:
        return f"FAILED: {str(error)[:300]}"
    return fine


def _counts(result: Result) -> str:
    return (
        f"{len(result.accepted)} accepted, {result.refused} refused for now, "
        f"{result.denied} refused for good"
    )


def reloaded(version: str, name: str, options: argparse.Namespace) -> bool:
    """Replace the programs under load; return whether no client noticed."""
    program = PROGRAMS[name]
    command = supervised(program, "--workers", str(options.workers))
    with Smtpd(version, **arguments(command)) as server, rspamd(server.lab):
        storm = Storm(server, program)
        started = time.monotonic()
        result = storm.reload(options.reloads, clients=options.clients)
        seconds = time.monotonic() - started
        verdict = verdict_on(storm, "no session lost, no mail refused for now")
        if result.refused:
            verdict = f"FAILED: {result.refused} refused for now; {verdict}"
        print(
            f"{version} {name}: {options.reloads} reloads in {seconds:.0f} s, {_counts(result)}: "
            f"{verdict}",
            flush=True,
        )
        return not verdict.startswith("FAILED")


def unsupervised(version: str, name: str, clients: int) -> None:
    """Run the filter alone, and show how long the server lives after the first failure."""
    program = PROGRAMS[name]
    with Smtpd(version, **arguments(program.command)) as server, rspamd(server.lab):
        storm = Storm(server, program)
        # Clients find a connection closed, or none.
        with suppress(OSError, smtplib.SMTPException), storm.clients(clients):
            storm.wait(accepted=clients)
            storm.strike(1, 0, (signal.SIGKILL,))
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
    parser.add_argument("--filter", action="append", choices=PROGRAMS)
    parser.add_argument("--version", action="append", choices=VERSIONS)
    parser.add_argument("--unsupervised", action="store_true")
    parser.add_argument("--reloads", type=int, default=0, help="reload, and cause no failures")
    options = parser.parse_args()
    fine = True
    for version in options.version or VERSIONS:
        if reason := unavailable(version):
            print(f"{version}: left out: {reason}")
            continue
        for name in options.filter or PROGRAMS:
            if options.unsupervised:
                unsupervised(version, name, options.clients)
            elif options.reloads:
                fine &= reloaded(version, name, options)
            else:
                fine &= stormed(version, name, options)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
