"""Measurements of signatures: verification beside dkimpy's own, signing beside the C filter.

    python -m tests.bench.signatures [--check]

Also the longest step of hostile messages, and the arithmetics. The C filter is Debian's
opensmtpd-filter-dkimsign; ours runs as a process of its own beside it, with the same key and flags.
Processor times, the best of several rounds; with --check the exit status is 1 if a target is
missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import dkim

from smtpd_filters.authentication.dkim.arithmetic import Cryptography, Dkimpy
from smtpd_filters.authentication.dkim.canonical import BodyHashes
from smtpd_filters.authentication.dkim.driver import BLOCK
from smtpd_filters.authentication.dkim.signatures import Signatures
from smtpd_filters.authentication.dkim.signed_fields import SignedFields
from smtpd_filters.message import Message
from tests.authentication.signing import (
    MESSAGE,
    NAME,
    NOW,
    TEMPLATE,
    key_record,
    message,
    public,
    rsa_key,
    signed,
    verified_message,
)
from tests.authentication.test_hostile_signatures import HOSTILE
from tests.authentication.test_keys import DIGEST, numbers
from tests.bench.player import Player
from tests.bench.workloads import message as line_message
from tests.bench.workloads import sessions
from tests.filters.test_dkimsign import pem

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 5
C_FILTER = Path("/usr/libexec/opensmtpd/filter-dkimsign")
#: The targets: messages of 2 KB a second, times dkimpy's rate, milliseconds of a hostile message.
RATE, TIMES, STALL = 1500, 5.0, 50.0
SIGNATURE = TEMPLATE.replace(":date", ":date:message-id:mime-version:content-type:from")
LINE = b"We lost the game. Are you hungry yet? It is late, and the shops are about to close.\r\n"


def best(work: Callable[[], object], count: int) -> float:
    """Return the processor time of a call, in seconds."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(count):
            work()
        times.append((time.process_time() - begun) / count)
    return min(times)


#: The trace and MIME fields of ordinary mail.
FIELDS = b"""\
Received: from mail.example.net (mail.example.net [192.0.2.1])
	by mx.example.com (OpenSMTPD) with ESMTPS id 0f1e2d3c (TLSv1.3:256:NO);
	Mon, 30 Nov 2026 08:00:00 +0000 (UTC)
Received: from [192.168.1.2] (client.example.net [198.51.100.7])
	by mail.example.net (Postfix) with ESMTPSA id 4c5d6e7f;
	Mon, 30 Nov 2026 07:59:59 +0000
Message-ID: <3f9a2c61-5d1b-4f4e-9a67-0c8f4c1de2ab@example.org>
MIME-Version: 1.0
User-Agent: Mozilla Thunderbird
Content-Language: en-GB
Content-Type: text/plain; charset=UTF-8; format=flowed
Content-Transfer-Encoding: 7bit
""".replace(b"\n", b"\r\n")


def of_size(size: int) -> bytes:
    """Return a signed message of about this many bytes."""
    raw = FIELDS + MESSAGE
    return signed(raw + LINE * ((size - len(raw)) // len(LINE)), SIGNATURE)


def ours(raw: bytes) -> Callable[[], object]:
    """Return the verification of a message, collected from lines as a filter does it."""
    keys = key_record()
    lines = raw.split(b"\r\n")[:-1]

    def verify() -> None:
        made = Message()
        made.feed(lines)
        made.close()
        (found,) = verified_message(made, keys)
        made.discard()
        assert found.result == "pass"

    return verify


def theirs(raw: bytes) -> Callable[[], object]:
    """Return dkimpy's verification."""
    record = f"v=DKIM1; p={public(rsa_key())}".encode()
    assert NAME in key_record()

    def verify() -> None:
        assert dkim.verify(raw, dnsfunc=lambda _name, timeout=5: record)  # noqa: ARG005

    return verify


def main() -> int:
    """Print the figures; the exit status is for --check."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    missed = []
    for size in (2 << 10, 100 << 10):
        raw = of_size(size)
        own, other = best(ours(raw), 200), best(theirs(raw), 20)
        print(
            f"verify {size >> 10:4} KB: {1 / own:7.0f}/s, dkimpy {1 / other:6.0f}/s, "
            f"{other / own:.1f} times"
        )
        if size == 2 << 10 and (1 / own < RATE or other / own < TIMES):
            missed.append("verification of 2 KB")
    for case, make in HOSTILE.items():
        made = message(make())
        longest = _longest_step(made)
        print(f"hostile, {case}: {made.stored >> 10} KiB, longest step {1000 * longest:.1f} ms")
        made.discard()
        if 1000 * longest > STALL:
            missed.append(case)
    with tempfile.TemporaryDirectory() as folder:
        _signing(Path(folder))
    for library in (Cryptography(), Dkimpy()):
        sign = library.rsa_sign(numbers())
        signature = sign(DIGEST)
        verify = library.rsa_verify(numbers().n, numbers().e)
        signing = best(lambda sign=sign: sign(DIGEST), 20)  # type: ignore[misc]
        verifying = best(lambda v=verify, s=signature: v(DIGEST, s), 50)  # type: ignore[misc]
        print(
            f"{library.name}: RSA-2048 signs in {1000 * signing:.2f} ms, "
            f"verifies in {1000 * verifying:.3f} ms"
        )
    for name in missed:
        print(f"missed: {name}", file=sys.stderr)
    return 1 if check and missed else 0


def measure_verification(size: int, count: int) -> dict[str, dict[str, float]]:
    """Return the rates of our verification and of dkimpy's, in one round."""
    raw = of_size(size)
    works = {"ours": (ours(raw), count), "dkimpy": (theirs(raw), max(1, count // 10))}
    return {name: {"messages/s": 1 / best(*each)} for name, each in works.items()}


def measure_signing(key: Path, lines: int, count: int) -> dict[str, dict[str, float]]:
    """Return the rates of both filters that sign, in one round; only ours without the C filter.

    A session has one message of so many lines of 61 bytes. The rate is that of a second of
    processor time, on one core.
    """
    found = {}
    for name, command in _commands(key).items():
        with Player(command) as player:
            sessions(player, max(20, count // 10), 20, line_message(lines))  # warm
            cost = sessions(player, count, 20, line_message(lines)).cost
            found[name] = {"sessions/s": 1e6 / cost, "RSS MiB": player.memory()[0] / (1 << 20)}
    return found


def measure_workers(key: Path, count: int) -> dict[str, dict[str, float]]:
    """Return the rates of our filter with one process that signs, and with two, in one round.

    The key should be one that they are for: of more than 2048 bits. One rate is that of the wall
    clock, the other that of a second of processor time of the busiest process, which is the limit
    where each has a core, whatever else the machine does.
    """
    found = {}
    for name, workers in (("one worker", 1), ("two workers", 2)):
        command = [*_commands(key)["ours"], "--workers", str(workers)]
        with Player(command) as player:
            sessions(player, 60, 20, line_message(33))  # each process loads its library
            before = player.cpu_of_each()
            rate = sessions(player, count, 20, line_message(33)).rate
            used = [after - each for after, each in zip(player.cpu_of_each(), before, strict=True)]
            found[name] = {"sessions/s": rate, "limit, sessions/s": 1e9 * count / max(used)}
    return found


def write_key(folder: Path, bits: int = 2048) -> Path:
    """Write the key of the filters that sign."""
    key = folder / f"key{bits}"
    key.write_bytes(pem(bits=bits))
    key.chmod(0o640)
    return key


def _commands(key: Path) -> dict[str, list[str]]:
    flags = ["-d", "example.net", "-s", "sel", "-k", str(key), "-c", "relaxed/relaxed"]
    commands = {"ours": [sys.executable, "-m", "smtpd_filters.filters.dkimsign", *flags]}
    if C_FILTER.exists():
        commands["C"] = [str(C_FILTER), "-a", "rsa-sha256", *flags]
    return commands


def _signing(folder: Path) -> None:
    """Print how many sessions with a message a second both filters sign for, on one core."""
    key = write_key(folder)
    for lines, count in ((33, 2000), (1640, 300)):
        rounds = [measure_signing(key, lines, count) for _ in range(ROUNDS)]
        for name in rounds[0]:
            best_of = max((each[name] for each in rounds), key=lambda found: found["sessions/s"])
            print(
                f"sign {lines * 61 >> 10:4} KB, {name}: {best_of['sessions/s']:.0f} sessions a "
                f"second of processor time, {best_of['RSS MiB']:.1f} MiB"
            )


def _longest_step(made: Message) -> float:
    """Return the processor time of the longest step of a verification: of all but the body's."""
    signatures = Signatures(SignedFields(made.headers), NOW)  # once, to warm up
    begun = time.process_time()
    signatures = Signatures(SignedFields(made.headers), NOW)
    steps = [time.process_time() - begun]
    bodies = BodyHashes(signatures.bodies)
    for block in made.body(BLOCK):
        begun = time.process_time()
        bodies.update(block)
        steps.append(time.process_time() - begun)
    begun = time.process_time()
    bodies.finish()
    for _ in signatures.results(bodies, key_record()):
        now = time.process_time()
        steps.append(now - begun)
        begun = now
    steps.append(time.process_time() - begun)
    return max(steps)


if __name__ == "__main__":
    sys.exit(main())
