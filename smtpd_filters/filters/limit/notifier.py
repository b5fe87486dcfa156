"""The program that gives notices of blocked accounts, started by `notices`.

It is run as a file, and so imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Signals that would end this process although they mean nothing to it, as in `startup`.
_STRAY = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGXCPU)
#: Seconds for a command.
PATIENCE = 60.0
#: Bytes of a notice.
MAX_NOTICE = 16_384
#: What a notice says.
FIELDS = ("subject", "limit", "address", "session")


def main(arguments: Sequence[str]) -> None:
    """Give notices until the socket at descriptor 0 is closed."""
    command, mail, sendmail = arguments
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _STRAY:
        signal.signal(number, lambda *_: None)  # not ignored, which programs inherit
    receiver = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    while data := receiver.recv(MAX_NOTICE):
        fields: Mapping[str, str] = json.loads(data)
        values = [fields.get(name, "") for name in FIELDS]
        if command:
            _run([command, *values], b"")
        if mail:
            _run([sendmail, "-i", "--", mail], letter(mail, fields))


def letter(mail: str, fields: Mapping[str, str]) -> bytes:
    """Return the mail of a notice."""
    lines = [
        f"To: {mail}",
        f"Subject: blocked: {fields['subject'][:200]}",
        # RFC 3834 section 5: so that nobody answers automatically.
        "Auto-Submitted: auto-generated",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "",
        f"{fields['subject']} has exceeded a limit and can send no mail until it is released:",
        "",
        *(f"    {name}: {fields[name]}" for name in FIELDS),
        "",
        "When the cause is mended, such as a stolen password, release it with",
        "",
        f"    smtpd-filters limit release {shlex.join(fields['subject'].split(' '))}",
        "",
    ]
    return "\n".join(lines).encode("utf-8", "replace")


def _run(command: Sequence[str], text: bytes) -> None:
    """Run a command within its time; log if it fails."""
    try:
        done = subprocess.run(  # noqa: S603  # of the settings
            command, input=text, stdout=subprocess.DEVNULL, timeout=PATIENCE, check=False
        )
        problem = f"exited with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"not done within {PATIENCE:g} s"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        with suppress(OSError):  # smtpd reads no log, or has ended
            os.write(2, f'limit notice error="{command[0]}: {problem}"\n'.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
