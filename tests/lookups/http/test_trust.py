"""The certificates that the HTTP client trusts, and when they are loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.loading import ROOT

#: Prints the file of trusted certificates at each load, and in the end.
PROGRAM = """
import os, ssl, sys

def load(self):
    print(os.environ.get("SSL_CERT_FILE"))

ssl.SSLContext.set_default_verify_paths = load

from smtpd_filters.lookups.http import Client

for url in sys.argv[1:]:
    Client([url], timeout=1, deadline=1)
    print("made")
print(os.environ.get("SSL_CERT_FILE"))
"""
PLAIN, SECURE = "http://127.0.0.1:1", "https://127.0.0.1:1"


def loads(path: str | None, *urls: str) -> list[list[str]]:
    """The files that are loaded for each client, and what the variable has in the end."""
    environment = {**os.environ, "SSL_CERT_FILE": path or ""}
    if path is None:
        del environment["SSL_CERT_FILE"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *urls],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [part.split() for part in done.stdout.split("made\n")]


@pytest.mark.parametrize("path", [None, "own.pem"])
def test_no_file_is_loaded_for_servers_without_tls(path: str | None) -> None:
    *clients, end = loads(path, PLAIN, PLAIN)
    assert set(clients[0]) <= {os.devnull}
    assert clients[1:] == [[]]
    assert end == [str(path)]


@pytest.mark.parametrize("path", [None, "own.pem"])
def test_the_file_is_loaded_once_for_servers_with_tls(path: str | None) -> None:
    *clients, end = loads(path, PLAIN, SECURE, SECURE)
    assert clients[1:] == [[str(path)], []]
    assert end == [str(path)]
    assert loads(path, SECURE)[0][-1] == str(path)
