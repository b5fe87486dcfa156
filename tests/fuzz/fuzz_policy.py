"""No reply of a policy server raises anything but `ReplyError`, or becomes an illegal line.

`python -m tests.fuzz policy` runs it under atheris. The first byte chooses the stage, the second
the size of the pieces in which the rest arrives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.errors import UnavailableError
from smtpd_filters.filters.policy import actions
from smtpd_filters.filters.policy.fields import MAX_BYTES, MAX_FIELDS, Kept, Messages
from smtpd_filters.filters.policy.reply import MAX_REPLY, ReplyError, ReplyParser
from smtpd_filters.message import Headers
from smtpd_filters.message.folding import MAX_LINE

if TYPE_CHECKING:
    from pathlib import Path

PHASES = ("connect", "helo", "ehlo", "mail_from", "rcpt_to", "data", "message")


def fuzz(data: bytes) -> None:
    """Parse the bytes as a reply, in pieces and at once, and decide by its action."""
    kind, size, stream = data[:1], data[1:2], data[2:]
    phase = PHASES[(kind[0] if kind else 0) % len(PHASES)]
    step = (size[0] if size else 0) or len(stream) or 1
    results = [_result(stream, each) for each in (step, len(stream) or 1)]
    # In pieces a reply ends where the next one begins, which the connection notices then.
    if None not in results:
        assert results[0] == results[1]
    for result in results:
        if result is not None:
            _applied(result, phase)


def _result(stream: bytes, step: int) -> str | None:
    parser = ReplyParser()
    try:
        for at in range(0, len(stream), step):
            action = parser.feed(stream[at : at + step])
            if action is not None:
                return action
    except ReplyError:
        pass
    return None


def _applied(text: str, phase: str) -> None:
    assert len(text) <= MAX_REPLY
    assert not set(text) & set("\0\r\n")
    action = actions.parse(text)
    try:
        decision = actions.decide(action, phase)
    except UnavailableError:
        pass
    else:
        # Decisions check themselves; a rewritten recipient goes to smtpd as it is.
        assert not set(decision.text) & set("\0\r\n")
    if action.name == actions.PREPEND and (field := actions.field(action)) is not None:
        kept = Kept()
        messages = Messages(kept)
        messages.add(field, to_session=True)
        assert len(messages.fields) <= MAX_FIELDS
        assert sum(len(name) + len(value) for name, value in messages.fields) <= MAX_BYTES
        messages.release()
        headers = Headers([b"Received: x"])
        headers.prepend(*field)
        for line in headers.lines():
            assert line.strip(b" \t")
            assert not set(line) & set(b"\0\r\n")
            assert len(line) <= MAX_LINE


def seeds() -> list[bytes]:
    """Return valid inputs."""
    texts = (
        b"DUNNO", b"450 4.2.0 later", b"PREPEND X-A: b", b"REDIRECT a@b.example", b"HOLD x",
        b"DEFER_IF_PERMIT 4.7.1 later", b"1234", b"REJECT 5.7.1 no", b"WARN x",
    )  # fmt: skip
    return [b"%c\0action=%b\n\n" % (at % 256, text) for at, text in enumerate(texts)]


def corpus(directory: Path) -> None:
    """Write the seeds."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (directory / f"policy-{number}").write_bytes(seed)
