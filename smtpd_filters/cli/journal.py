"""`smtpd-filters journal`: the service that keeps what the filters have decided."""

from __future__ import annotations

import gc
import grp
import os
import secrets

from smtpd_filters.errors import ConfigError, os_reason, user_name
from smtpd_filters.journal.archive import Archive
from smtpd_filters.journal.places import DIRECTORY, KEY, SOCKET, read_key
from smtpd_filters.journal.privacy import MODES, Privacy
from smtpd_filters.journal.service import Service
from smtpd_filters.settings import INTEGER, PATH, SIZE, SWITCH, TEXT, Settings, choice, option
from smtpd_filters.settings.quoting import printable

from .accounts import UnknownError, filters_user
from .verb import Verb

#: Characters of a key for hashes.
KEY_SIZE = 32
#: Characters of a key at least.
LEAST_KEY = 16
#: Added to the process's nice value: mail comes first. Datagrams hold several stories while many
#: come, so that the journal is in time nevertheless.
NICE = 10
#: Threshold of the garbage collector for the youngest generation. Stories are freed without it,
#: after a second or two; with Python's default of 700 it took a third of the time.
YOUNG = 100_000


class Options(Settings):
    """Where the journal is, what it keeps, and for how long."""

    directory = option(
        PATH,
        default=DIRECTORY,
        help="The directory of its files, one for each day. It must belong to the journal alone.",
    )
    socket = option(
        PATH,
        default=SOCKET,
        help="The socket to which filters send, as their --journal says. Its directory must exist.",
    )
    socket_group = option(
        TEXT,
        default="",
        help="The group that may write to the socket; the journal must be a member of it. By "
        "default that of smtpd's filters.",
    )
    days = option(INTEGER(low=1, high=3660), default=30, help="How many days to keep.")
    size = option(
        SIZE(low=16 << 20),
        default=2 << 30,
        help="The size of all files above which the oldest is deleted.",
    )
    free = option(
        SIZE(low=1 << 20),
        default=256 << 20,
        help="How much space must be free on the file system: no message is stored below that.",
    )
    addresses = option(
        choice(*MODES),
        default="plain",
        help="How to store addresses and names of clients, senders, recipients and users: plain; "
        "shortened (the network of a client, the first letter and the domain of an address); or "
        "hashed with a key, which is created in the directory, so that only somebody who knows an "
        "address finds it. Then only whole addresses and names are found, and neither domains "
        "(@example.org) nor networks nor parts of an address.",
    )
    subjects = option(
        SWITCH, default=False, help="Store the subjects of messages. Bodies are never stored."
    )


def run(options: Options, _rest: list[str]) -> int:
    """Serve until SIGTERM."""
    _check_socket(os.path.abspath(options.socket))  # noqa: PTH100  # paths as text
    directory = os.path.abspath(options.directory)  # noqa: PTH100  # paths as text
    try:
        os.makedirs(directory, mode=0o750, exist_ok=True)  # noqa: PTH103
    except OSError as error:
        raise ConfigError(f"--directory: {directory}: {os_reason(error)}") from None
    archive = Archive(
        directory,
        Privacy(options.addresses, _key(directory) if options.addresses == "hashed" else b""),
        days=options.days,
        size=options.size,
        floor=options.free,
        subjects=options.subjects,
        note=VERB.note,
    )
    group = _group(options.socket_group)
    service = Service(archive, os.path.abspath(options.socket), group=group, note=VERB.note)  # noqa: PTH100
    try:
        service.open()
        os.nice(NICE)
        gc.freeze()
        gc.set_threshold(YOUNG)
        VERB.note(f"ready, files in {directory}, socket {options.socket}")
        service.run()
    finally:
        service.close()
    return 0


def _check_socket(path: str) -> None:
    """Raise ConfigError if no socket can be made there, before anything else is made.

    A journal that fails later leaves files of its user, which the right user can't open.
    """
    directory = os.path.dirname(path)  # noqa: PTH120  # paths as text
    if not os.path.isdir(directory):  # noqa: PTH112
        from shlex import quote  # needed only for an error

        owner = user_name() if os.geteuid() else "USER"
        raise ConfigError(
            f"--socket: the directory {directory} is missing; the system's service of the journal "
            f"makes it, or as root: install -d -o {owner} -m 755 {quote(directory)}"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--socket: user {user_name()} may not write in the directory {directory}"
        )


def _group(name: str) -> int | None:
    """Return the number of the socket's group; None if there is no user of filters."""
    if name:
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            raise ConfigError(f"--socket-group: no group {printable(name)}") from None
    try:
        return filters_user().gid
    except UnknownError:
        return None


def _key(directory: str) -> bytes:
    """Return the key with which addresses are hashed, a new one at the first start.

    Raises ConfigError.
    """
    path = os.path.join(directory, KEY)  # noqa: PTH118
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}") from None
    else:
        _write_key(fd, path)
    key = read_key(directory)
    if len(key) < LEAST_KEY:  # everybody could compute hashes with it
        raise ConfigError(
            f"{path}: a key of less than {LEAST_KEY} characters; remove it if it was left by a "
            "crash or a full disk: a new one is made, and what was hashed before isn't found"
        )
    return key


def _write_key(fd: int, path: str) -> None:
    """Write a new key to a new file; remove the file if that fails. Raises ConfigError."""
    try:
        with open(fd, "wb") as file:
            file.write(secrets.token_hex(KEY_SIZE).encode())
            file.flush()
            os.fsync(fd)
    except BaseException as error:
        os.unlink(path)  # noqa: PTH108  # paths as text
        if not isinstance(error, OSError):
            raise
        raise ConfigError(f"{path}: {os_reason(error)}") from None


VERB = Verb(
    "journal",
    run,
    options=Options,
    description="Keep what filters decide, for why, stats and tail. Filters with --journal send it "
    "to a socket; it is stored in a SQLite file for each day. It runs until SIGTERM.",
    ending="The exit status is 0 after SIGTERM, and 2 if it can't start: another journal has the "
    "directory or the socket, or a newer release has written the files.",
)
