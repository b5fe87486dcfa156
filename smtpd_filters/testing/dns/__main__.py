"""The name server as a program, which serves a zone from a JSON file."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import DNSServer
from . import __doc__ as manual

if TYPE_CHECKING:
    from types import FrameType


def _endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    ipaddress.ip_address(address)
    return address, int(port)


def main(arguments: list[str] | None = None) -> int:
    """Serve a zone file until SIGTERM or the end of standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m smtpd_filters.testing.dns", description=(manual or "").partition("\n")[0]
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        type=_endpoint,
        action="append",
        help="address for UDP and TCP; [::1]:53 for IPv6; may be repeated"
        " (default: 127.0.0.1 and a free port)",
    )
    parser.add_argument("--zone", metavar="FILE.json", type=Path, required=True, help="the zone")
    parser.add_argument("--log", action="store_true", help="print all questions at the end")
    settings = parser.parse_args(arguments)
    try:
        server = DNSServer(
            json.loads(settings.zone.read_text("utf-8")),
            listen=settings.listen or [("127.0.0.1", 0)],
        )
        signal.signal(signal.SIGTERM, _terminated)
        with contextlib.suppress(KeyboardInterrupt), server:
            where = " ".join(f"{address}:{port}" for address, port in server.endpoints)
            sys.stderr.write(f"serving {len(server.zone)} names on {where}\n")
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            while sys.stdin.buffer.read(4096):
                pass
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"{parser.prog}: {settings.zone}: {exc}\n")
        return 2
    if settings.log:
        sys.stderr.writelines(f"{name} {rdtype}\n" for name, rdtype in server.queries)
    return 0


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
