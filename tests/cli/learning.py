"""A caller of `smtpd-filters learn` for tests, and its messages."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_filters.cli import main
from smtpd_filters.testing.rspamd.stub import Answer, RspamdStub

if TYPE_CHECKING:
    import pytest

    Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[2]
TOOL = [sys.executable, "-c", "import sys; from smtpd_filters.cli import main; sys.exit(main())"]
MAIL = b"From: bob@example.net\nSubject: hello\n\n.body\xff\n\n"
LEARNED = Answer(b'{"success":true}')
KNOWN = Answer(b'{"error":"<1@example.org> has been already learned as spam, ignore it"}', 208)
# As rspamd 3.4 says it: with the length of a content that isn't there.
SHORT = Answer(b"", 204, headers=(("Content-Length", "83"),))


def run(
    *words: str, stdin: bytes = b"", capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Return the result of `learn` with these words: status, stdout, stderr."""
    with Piped(stdin) as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        try:
            status = main(["learn", *words])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, *capsys.readouterr()


class Piped(io.TextIOWrapper):
    """A stdin with these bytes."""

    def __init__(self, data: bytes) -> None:
        source, sink = os.pipe()
        self._writer = threading.Thread(target=self._write, args=(sink, data))
        self._writer.start()
        super().__init__(os.fdopen(source, "rb"))

    @staticmethod
    def _write(sink: int, data: bytes) -> None:
        with os.fdopen(sink, "wb") as file:
            file.write(data)

    def close(self) -> None:
        self.buffer.read()
        super().close()
        self._writer.join()


class Learn:
    """Calls `learn`, with a daemon that answers."""

    def __init__(
        self, rspamd: RspamdStub, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.rspamd = rspamd
        self._rest: dict[str, Any] = {"capsys": capsys, "monkeypatch": monkeypatch}

    def __call__(self, *words: str, stdin: bytes = b"", url: str = "") -> tuple[int, str, str]:
        return run(*words, "-url", url or self.rspamd.url, stdin=stdin, **self._rest)


def maildir(path: Path, **messages: bytes) -> Path:
    for name in ("cur", "new", "tmp"):
        (path / name).mkdir(parents=True)
    for name, data in messages.items():
        (path / ("cur" if name.endswith("S") else "new") / name.replace("_", ":2,")).write_bytes(
            data
        )
    return path


def bodies(rspamd: RspamdStub) -> list[bytes]:
    return sorted(request.body for request in rspamd.requests)
