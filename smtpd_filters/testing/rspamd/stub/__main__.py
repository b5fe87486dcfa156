"""The stub as a program, with one answer for every request."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import BEHAVIOURS, CLEAN, KEEP, Answer, RspamdStub
from . import __doc__ as manual

if TYPE_CHECKING:
    from types import FrameType


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (name and colon):
        raise ValueError(text)
    return name, value.strip()


def main(arguments: list[str] | None = None) -> int:
    """Serve one answer until SIGTERM or the end of standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m smtpd_filters.testing.rspamd.stub",
        description=(manual or "").partition("\n")[0],
        epilog="behaviours: " + "; ".join(f"{k}: {v}" for k, v in BEHAVIOURS.items() if k),
    )
    parser.add_argument(
        "--listen", metavar="HOST:PORT|PATH", default="127.0.0.1:0", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--reply",
        metavar="FILE",
        type=Path,
        help="the reply (default: that of a clean message)",
    )
    parser.add_argument("--status", metavar="N", type=int, default=200)
    parser.add_argument(
        "--header", metavar="NAME:VALUE", type=_field, action="append", default=[],
        help="a further field of the reply; may be repeated",
    )  # fmt: skip
    parser.add_argument("--delay", metavar="SECONDS", type=float, default=0.0)
    parser.add_argument("--behaviour", choices=[*filter(None, BEHAVIOURS)], default="")
    parser.add_argument("--chunked", action="store_true", help="send the reply in chunks")
    parser.add_argument(
        "--log", action="store_true", help="print the requests, without bodies, at the end"
    )
    settings = parser.parse_args(arguments)
    try:
        body = settings.reply.read_bytes() if settings.reply else json.dumps(CLEAN).encode()
        answer = Answer(
            body,
            status=settings.status,
            headers=tuple(settings.header),
            delay=settings.delay,
            behaviour=settings.behaviour,
            chunked=settings.chunked,
        )
        stub = RspamdStub(answer, listen=settings.listen, keep=KEEP if settings.log else 0)
        signal.signal(signal.SIGTERM, _terminated)
        with contextlib.suppress(KeyboardInterrupt), stub:
            sys.stdout.write(f"ready {stub.url}\n")
            sys.stdout.flush()
            while os.read(0, 4096):
                pass
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"{parser.prog}: {exc}\n")
        return 2
    for request in stub.requests:
        sys.stderr.write(request.head.decode("latin-1").replace("\r\n", "\n") + "\n\n")
    sys.stderr.write(f"{stub.asked} requests over {stub.connections} connections\n")
    return 0


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
