"""A policy server on stdin and stdout: `program.py FILE`, where FILE says how it behaves.

It answers with its process id, and how many requests it has had. The first word of FILE, read for
each request, may be `die`, `silent`, `half` or `linger` (ignore the end of the input and SIGTERM).
A request with the recipient `slow` makes it linger as well.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(behaviour: Path) -> None:
    count = 0
    slow = False
    for line in sys.stdin:
        slow = slow or line == "recipient=slow\n"
        if line != "\n":
            continue
        count += 1
        match ["linger"] if slow else behaviour.read_text().split()[:1]:
            case ["die"]:
                return
            case ["silent"]:
                continue
            case ["half"]:
                sys.stdout.write("action=PRE")
                sys.stdout.flush()
                return
            case ["linger"]:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    signal.pause()
        sys.stdout.write(f"action=WARN {os.getpid()} {count}\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
