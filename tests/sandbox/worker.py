"""Filters for tests of the sandbox: `worker.py NAME [FLAGS]`."""

# ruff: noqa: ARG002  # handlers; what is imported late is what they are for

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

from smtpd_filters import (
    JUNK,
    PROCEED,
    Answer,
    Filter,
    Headers,
    Message,
    Needs,
    Proceed,
    Session,
    Settings,
    option,
    run,
)
from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import ENDPOINT, PATH, table
from smtpd_filters.tables import StringTable


class Tabled(Filter):
    """Marks the addresses of a table."""

    class Options(Settings):
        """The table."""

        names = option(table(StringTable), default=None, help="Addresses that are junk.")

    settings: Options

    def rcpt_to(self, session: Session, address: str) -> Answer:
        names = self.settings.names
        return JUNK if names is not None and address in names else PROCEED


class Whole(Filter):
    """Reads messages."""

    def message(self, session: Session, message: Message) -> Proceed:
        assert sum(map(len, message.iter_bytes())) > 0
        return PROCEED


class Late(Filter):
    """Uses for the first time, in a handler, what Python loads late."""

    class Options(Settings):
        """A server and a file."""

        server = option(ENDPOINT, default=None, help="A server to connect to.")
        file = option(PATH("read"), default=None, help="A file to read.")

    settings: Options

    def helo(self, session: Session, identity: str) -> Proceed:
        getattr(self, f"_{identity}")()
        return PROCEED

    async def ehlo(self, session: Session, identity: str) -> Proceed:
        await getattr(self, f"_later_{identity}")()
        return PROCEED

    def _modules(self) -> None:
        import decimal
        import email.message
        import json
        import logging
        import sqlite3
        import ssl
        import unicodedata
        import xml.dom.minidom

        import zstandard

        assert all((decimal, email.message, json, logging, unicodedata, xml.dom.minidom))
        assert zstandard.ZstdCompressor().compress(b"x")
        assert ssl.create_default_context().get_ca_certs() is not None
        assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)

    def _codecs(self) -> None:
        assert "ü".encode("cp1252") + "я".encode("koi8-r")
        assert "日".encode("iso2022_jp")
        assert "bücher.example".encode("idna")

    def _time(self) -> None:
        import time
        from zoneinfo import ZoneInfo

        assert ZoneInfo("Europe/Berlin").key
        time.tzset()
        assert time.localtime().tm_year

    def _machine(self) -> None:
        import random
        import uuid

        assert os.cpu_count()
        assert os.urandom(8)
        assert random.SystemRandom().random() < 1
        assert uuid.uuid4().version
        assert Path("/proc/self/statm").read_text()
        with Path(os.devnull).open("w") as null:
            null.write("x")

    def _thread(self) -> None:
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(os.getpid()))
        thread.start()
        thread.join()
        assert done

    def _traceback(self) -> None:
        import traceback
        import warnings

        try:
            int("x")
        except ValueError:
            assert 'int("x")' in traceback.format_exc()
        warnings.warn("a warning", stacklevel=1)

    def _file(self) -> None:
        assert self.settings.file is not None
        assert Path(self.settings.file).read_text() == "declared"

    async def _later_names(self) -> None:
        """Resolve a name by the C library, in a thread; it reads files in /etc."""
        loop = asyncio.get_running_loop()
        assert await loop.getaddrinfo("localhost", 25)

    async def _later_connection(self) -> None:
        assert self.settings.server is not None
        host, port = self.settings.server
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        await writer.wait_closed()


class Closing(Filter):
    """Never waits, and has something to release, for which the poll loop loads asyncio at last."""

    class Options(Settings):
        """Where it is noted."""

        notes = option(PATH("write"), required=True, help="A directory.")

    settings: Options

    def helo(self, session: Session, identity: str) -> Proceed:
        return PROCEED

    async def close(self) -> None:
        await asyncio.sleep(0)
        (Path(self.settings.notes) / "closed").write_text("")


class Leaking(Filter):
    """Takes all it can get of a resource, and keeps it."""

    def setup(self) -> None:
        self._kept: list[object] = []

    def helo(self, session: Session, identity: str) -> Proceed:
        while True:
            self._kept.append(
                bytes(64 << 20) if identity == "memory" else os.open(os.devnull, os.O_RDONLY)
            )

    def noop(self, session: Session, text: str) -> Proceed:
        self._kept.clear()
        return PROCEED


class Headed(Filter):
    """Reads headers."""

    def headers(self, session: Session, headers: Headers) -> Proceed:
        return PROCEED


class Threaded(Filter):
    """Starts a thread before the sandbox is there."""

    def setup(self) -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()

    def helo(self, session: Session, identity: str) -> Proceed:
        return PROCEED


class Mistaken(Filter):
    """Has a mistake in its declaration."""

    def needs(self, needs: Needs) -> None:
        raise ValueError("a mistake")

    def helo(self, session: Session, identity: str) -> Proceed:
        return PROCEED


class Unstarted(Filter):
    """Has a program that can't be started."""

    def needs(self, needs: Needs) -> None:
        raise ConfigError("/bin/x: can't be started")

    def helo(self, session: Session, identity: str) -> Proceed:
        return PROCEED


class Running(Filter):
    """Starts programs, as it declares."""

    def needs(self, needs: Needs) -> None:
        needs.to_run()

    def helo(self, session: Session, identity: str) -> Proceed:
        import subprocess

        done = subprocess.run(["/bin/echo", identity], capture_output=True, check=True)
        assert done.stdout == f"{identity}\n".encode()
        return PROCEED


class Listening(Filter):
    """Listens at a port, as it declares."""

    def needs(self, needs: Needs) -> None:
        needs.to_listen(0)

    def helo(self, session: Session, identity: str) -> Proceed:
        import socket

        with socket.create_server(("127.0.0.1", 0)):
            return PROCEED


if __name__ == "__main__":
    sys.exit(run(globals()[sys.argv.pop(1)]))
