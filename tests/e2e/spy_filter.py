"""A filter that registers everything, proceeds, and writes down each line it is given.

    spy_filter.py FILE [PHASE=ANSWER | exit@PHASE]...

ANSWER is what follows the token: `junk`, `reject|550 no`. `exit@PHASE` ends the process when the
phase is asked. The first line of FILE is a comment with the user and the arguments it was given.
Of the project it uses nothing: what it sees is not coloured by what is tested.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

REPORTS = (
    *("link-auth", "link-connect", "link-disconnect", "link-greeting", "link-identify", "link-tls"),
    *("tx-begin", "tx-mail", "tx-reset", "tx-rcpt", "tx-envelope", "tx-data", "tx-commit"),
    *("tx-rollback", "protocol-client", "protocol-server", "filter-response", "filter-report"),
    "timeout",
)
PHASES = (
    *("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data", "data-line"),
    *("commit", "quit", "rset", "noop"),
)


def main() -> None:
    """Register, record, answer."""
    path, *rules = sys.argv[1:]
    answers = dict(rule.split("=", 1) for rule in rules if "=" in rule)
    deadly = {rule.removeprefix("exit@") for rule in rules if rule.startswith("exit@")}
    out = sys.stdout.buffer
    with Path(path).open("wb", buffering=0) as record:
        record.write(f"# uid={os.getuid()} arguments={rules!r}\n".encode())
        for kind, names in (("report", REPORTS), ("filter", PHASES)):
            for name in names:
                out.write(f"register|{kind}|smtp-in|{name}\n".encode())
        out.write(b"register|ready\n")
        out.flush()
        for line in sys.stdin.buffer:
            record.write(line)
            if not line.startswith(b"filter|"):
                continue
            _, _, _, _, phase, session, token, rest = line.rstrip(b"\n").split(b"|", 7)
            name = phase.decode()
            if name in deadly:
                return
            key = session + b"|" + token
            if name == "data-line":
                out.write(b"filter-dataline|" + key + b"|" + rest + b"\n")
            else:
                answer = answers.get(name, "proceed").encode()
                out.write(b"filter-result|" + key + b"|" + answer + b"\n")
            out.flush()


if __name__ == "__main__":
    main()
