"""Declarations of the settings that all scanners have.

Each is called in a filter's `Options`, so that its help and manual page list them in their places.
The clients that aren't scanned are declared by `smtpd_filters.checks.exemptions`.
"""

from __future__ import annotations

from smtpd_filters.settings import INTEGER, MAX_DEADLINE, SECONDS, SIZE, choice, option

from .intake import LARGER

#: The names of what a marked message gets.
HEADERS = ("minimal", "extended")
#: What to do about a scanner's changes of the envelope.
ENVELOPE = ("log", "tempfail")


def timeout_option(default: float, note: str) -> float:
    """Declare `--timeout`; `note` is a sentence about the server's own limit."""
    return option(
        SECONDS(low=0.01, high=MAX_DEADLINE),
        default=default,
        help="How long to wait for a daemon's reply before the next one is asked. "
        f"{note} The limit for all daemons together is --deadline.",
    )


def connections_option(default: int = 64) -> int:
    """Declare `--connections`."""
    return option(
        INTEGER(low=1, high=10000),
        default=default,
        help="How many messages are sent to a daemon at a time; further ones wait. Those of one "
        "network (IPv4 /24, IPv6 /64) get at most about half of the places.",
    )


def max_size_option(default: int, note: str) -> int:
    """Declare `--max-size` in bytes; `note` is a sentence about the daemon's own limit."""
    return option(
        SIZE(low=1 << 10),
        default=default,
        help=f"The size up to which messages are scanned. {note}",
    )


def larger_option(default: str = "skip") -> str:
    """Declare `--larger`."""
    return option(
        choice(*LARGER),
        default=default,
        help="What to do with a larger message: accept it without a scan, or refuse it with a "
        "temporary or a permanent code.",
    )


def headers_option() -> str:
    """Declare `--headers`, the fields of a message that is marked as spam."""
    return option(
        choice(*HEADERS),
        default="extended",
        help="The header fields of a message that the daemon marks: X-Spam alone, or "
        "X-Spam-Score and X-Spam-Status as well. The header fields that the daemon itself adds "
        "are added in any case.",
    )


def envelope_option() -> str:
    """Declare `--envelope-changes`."""
    return option(
        choice(*ENVELOPE),
        default="log",
        help="What to do on a request for another sender or other recipients, which "
        "smtpd accepts from no filter: log it and continue, or refuse the message with a "
        "temporary code.",
    )
