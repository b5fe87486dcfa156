"""A table program that misbehaves on request, without this package."""

import os
import sys
import time

RESULTS = {
    "error.example": "error|database is down",
    "example.org": "found",
    "trap@example.org": "found",
    "joe": "found|joe@example.org, j@example.org",
    "pid": f"found|{os.getpid()}",
}


def main() -> None:
    mode = sys.argv[1] if len(sys.argv) > 1 else ""
    if mode == "ends":
        sys.exit(1)
    if mode == "mute":
        time.sleep(60)
    services = ("string",) if mode == "other" else ("domain", "mailaddr", "alias")
    for line in sys.stdin:
        if line == "config|ready\n":
            write("".join(f"register|{each}\n" for each in services) + "register|ready\n")
        elif line.startswith("table|"):
            fields = line.rstrip("\n").split("|", 7)
            answer(verb=fields[4], number=fields[6], key=fields[7])


def answer(verb: str, number: str, key: str) -> None:
    if key == "slow.example":
        time.sleep(60)
    if key == "die.example":
        os._exit(0)
    if key == "garbage.example":
        write("nonsense\n")
    elif key == "verb.example":
        write(f"other-result|{number}|not-found\n")
    elif key == "ok.example":
        write(f"{verb}-result|{number}|ok\n")
    else:
        write(f"{verb}-result|{number}|{RESULTS.get(key, 'not-found')}\n")


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
