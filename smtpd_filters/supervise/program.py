"""The executable filter-supervise, and the short form `--supervised` of the other executables."""

from __future__ import annotations

import os
import sys

from smtpd_filters.errors import ConfigError, not_started
from smtpd_filters.runtime.log import Log
from smtpd_filters.settings import (
    CHECKING,
    FILTER_NAME,
    INTEGER,
    MAX_DEADLINE,
    ONLINE,
    SECONDS,
    SIZE,
    UNDER_SUPERVISOR,
    ConversationSettings,
    Settings,
    choice,
    die,
    option,
    parse_flags,
    start_status,
)
from smtpd_filters.settings.declare import spellings
from smtpd_filters.startup import ignore_hangup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .observer import Observer

PROG = "filter-supervise"
DESCRIPTION = (
    "Run a filter program, COMMAND, and keep smtpd running whatever happens to it. What follows "
    "the options is the command."
)


class Options(Settings):
    """The flags of filter-supervise."""

    on_error = option(
        choice("proceed", "junk", "tempfail"),
        default="tempfail",
        help="What to answer in the place of a program that fails, or while none runs. At commit "
        "junk counts as tempfail.",
    )
    deadline = option(
        SECONDS(low=0.1, high=MAX_DEADLINE),
        default=60.0,
        help="How long the program may take to answer, to return a message after its end, and to "
        "read what is sent to it. It is ended if it takes longer. It may take as long to start, "
        "and at least a minute. A client waits at the end of a message for two of these: the "
        "message, and the answer at commit.",
    )
    workers = option(
        INTEGER(low=1, high=64),
        default=1,
        help="How many processes of the program to run. Each session is served by one.",
    )
    memory_limit = option(
        SIZE(low=1 << 20),
        default=None,
        help="The memory that each process of the program may use. It is ended if it uses more.",
    )
    drain_timeout = option(
        SECONDS(high=86400),
        default=600.0,
        help="How long a replaced process may take to finish its sessions after a reload.",
    )
    filter_name = option(
        FILTER_NAME,
        default=None,
        help="The name of the program in the journal. Use the name in smtpd.conf: smtpd doesn't "
        "pass it to filters. By default it is that of COMMAND's file.",
    )
    register = option(
        choice("auto", "all"),
        default="auto",
        help="What to register with smtpd: what the program registers at its first start, or "
        "every report and phase, so that a reload may begin to use any of them.",
    )


def main(argv: Sequence[str] | None = None, within: str = "") -> int:
    """Run the executable filter-supervise; `within` is the filter's name in the short form."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        flags, command = split_command(words)
        own, process = parse_flags(
            Options, flags, common=ConversationSettings, prog=PROG, description=DESCRIPTION
        )
        if not command:
            raise ConfigError("COMMAND is required: the filter program, with its options")  # noqa: TRY301  # as all errors of the command line
        if os.environ.get(CHECKING):
            from .process import extend_path, shell_command

            extend_path()
            if os.environ[CHECKING] == ONLINE and process.journal is not None:
                _try_journal(process.journal)
            os.execv("/bin/sh", ["sh", "-c", f"exec {shell_command(command)}"])  # noqa: S606  # as smtpd
        return supervise(command, own, process, within)
    except ConfigError as error:
        die(error, PROG, start_status(error))


def _try_journal(path: str) -> None:
    """Write whether the journal's socket can be used, for `smtpd-filters check --online`."""
    from asyncio import run

    from smtpd_filters.journal.sender import probe_of
    from smtpd_filters.runtime.probes import ask

    for answer in run(ask([probe_of(path)])):
        sys.stderr.write(f"{answer.line()}\n")
    sys.stderr.flush()


def split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """Split the flags of filter-supervise from the command.

    The first word that is neither a flag nor the value of one begins the command.
    """
    known = spellings([ConversationSettings.options, Options.options], PROG)
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return words[:at], words[at + 1 :]
        if not word.startswith("-") or word == "-":
            break
        flag, equals, _ = word.partition("=")
        takes_value = flag in known and bool(known[flag].kind.metavar) and not equals
        at += 2 if takes_value else 1
    return words[:at], words[at:]


def supervise(
    command: Sequence[str], own: Options, process: ConversationSettings, within: str = ""
) -> int:
    """Serve smtpd with the command as its filter; return the exit status.

    In the short form `within` is the filter's name, and the filter has the journal as well, to
    which it sends its own answers.
    """
    try:
        from smtpd_filters.runtime.channel import Ends, exit_now

        from .engine import Engine
        from .loop import Loop
        from .process import Process, extend_path, keep_to_ourselves, shell_command

        ends = Ends()
    except (OSError, ImportError, MemoryError) as error:
        raise not_started(error) from None
    ignore_hangup()  # until the loop handles it: no program has been started
    if ends.terminal():
        ends.leave_terminal(PROG, "flags", f"; the command is {shell_command(command)}")
        return 0
    keep_to_ourselves()
    extend_path()
    os.environ[UNDER_SUPERVISOR] = "1"
    log = Log(verbose=process.verbose)
    sys.unraisablehook = log.unraisable
    observer = None
    if process.journal is not None:
        observer = observe(process.journal, command, own.filter_name, log, within)
    engine = Engine(
        log,
        on_error=own.on_error,
        deadline=own.deadline,
        register_all=own.register == "all",
        refuse_long_lines=process.long_lines == "refuse",
        observer=observer,
    )
    memory = own.memory_limit or 0
    try:
        loop = Loop(
            engine,
            ends,
            log,
            lambda: Process(shell_command(command), memory),
            workers=own.workers,
            drain=own.drain_timeout,
        )
    except (OSError, MemoryError) as error:
        raise not_started(error) from None
    exit_now(loop.run())
    return 0


def observe(path: str, command: Sequence[str], name: str | None, log: Log, within: str) -> Observer:
    """Return what observes a command for the journal at `path`. Raises ConfigError.

    `name` is the command's there, by default that of the filter or of the command's file.
    """
    file = next((word for word in command if "=" not in word), PROG)
    name = name or within or os.path.basename(file)  # noqa: PTH119  # as given
    by_itself = bool(within) or any(each.partition("=")[0] == "--journal" for each in command)
    try:
        from smtpd_filters.journal.collector import Collector  # only with a journal
        from smtpd_filters.journal.sender import Sender

        from .observer import Observer

        # With the name of what it supervises: an alert about its ends is of no use otherwise.
        collector = Collector(Sender(path, log), f"{PROG} {name}", log)
        return Observer(collector, name, by_itself=by_itself)
    except (OSError, ImportError) as error:
        raise not_started(error) from None


if __name__ == "__main__":
    sys.exit(main())
