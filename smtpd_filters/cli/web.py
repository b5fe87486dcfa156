"""`smtpd-filters web`: the page that shows what the filters have decided."""

from __future__ import annotations

import getpass
import os
import re
import sys
from ipaddress import ip_address

from smtpd_filters.errors import ConfigError
from smtpd_filters.journal.places import DIRECTORY
from smtpd_filters.settings import (
    ENDPOINT,
    LIST,
    PATH,
    SWITCH,
    TEXT,
    Kind,
    Settings,
    choice,
    operand,
    option,
)
from smtpd_filters.settings.quoting import quote
from smtpd_filters.settings.secrets import read_secret
from smtpd_filters.startup import python
from smtpd_filters.stores.setting import STORE, open_store

from .journal_use import key_of
from .store_search import OPTIONS as STORE_OPTIONS
from .verb import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.stores import Store
    from smtpd_filters.web.guard import Access
    from smtpd_filters.web.passwords import Passwords
    from smtpd_filters.web.trials import Setup

PORT = 8026
#: Bytes of a password that is read from standard input.
_MAX_INPUT = 4096
#: A path whose characters routes and browsers take as they are.
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
#: The name of a field (RFC 9110 section 5.6.2), and a host as browsers send it.
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


class _Listen(Kind[tuple[str, int]]):
    metavar = "ADDRESS[:PORT]|PATH"
    noun = "an IP address with a port, or the path of a unix socket"

    def parse(self, text: str) -> tuple[str, int]:
        if text.startswith("/"):
            return text, 0
        host, port = ENDPOINT(PORT).parse(text)
        try:
            return str(ip_address(host)), port
        except ValueError:
            raise ValueError(f"expected {self.noun}, not {quote(text)}") from None

    def show(self, value: tuple[str, int]) -> str:
        host, port = value
        return host if host.startswith("/") else ENDPOINT.show((host, port))


class Options(Settings):
    """Which journal to read, where the page is, and who may read it."""

    action = operand(
        choice("serve", "password"),
        default="serve",
        metavar="ACTION",
        help="serve, the default, serves the page until SIGTERM; password adds a user to the file "
        "of --passwords, or changes the password, which it reads from the terminal or the "
        "standard input.",
    )
    who = operand(LIST(TEXT), default=(), metavar="USER", help="For password: the user.")
    directory = option(PATH, default=DIRECTORY, help="The directory of the journal's files.")
    listen = option(
        LIST(_Listen()),
        default=(("127.0.0.1", PORT),),
        help="Where to listen. An address that other machines reach requires --passwords, or "
        "--user-header and --proxy.",
    )
    passwords = option(
        PATH,
        default=None,
        help="The file of users and hashed passwords who may read the page. It is read again at "
        "SIGHUP; log-ins of users who were removed, or have another password, end then.",
    )
    user_header = option(
        TEXT,
        default="",
        help="The header field in which a proxy names the user that it has authenticated, such as "
        "X-Remote-User. It is believed on connections of --proxy only.",
    )
    proxy = option(
        LIST(TEXT),
        default=(),
        help="The address of a proxy, or unix for connections to a unix socket. With --user-header "
        "it names the user. With --passwords the last address in its X-Forwarded-For is the "
        "client's, who has to wait after wrong passwords: without --proxy everybody behind the "
        "proxy waits.",
    )
    host = option(
        LIST(TEXT),
        default=(),
        help="A name by which browsers reach the page, without a port. The addresses of --listen "
        "and, on loopback, localhost are known.",
    )
    prefix = option(
        TEXT, default="", help="The path below which a proxy serves the page, such as /filters."
    )
    metrics_token = option(
        PATH,
        default=None,
        help="A file with the bearer token by which Prometheus may read /metrics without a log-in: "
        "its credentials_file.",
    )
    greylist = option(
        STORE,
        default=None,
        help="The store of filter-greylist, to show it; with a log-in or on a unix socket, also to "
        "let clients in and forget them. Run the "
        "page as the owner of a file, or as a member of its group: then its directory needs mode "
        "2770 and the file 0660, the mode of new files there.",
    )
    limits = option(
        STORE,
        default=None,
        help="The store of filter-limit, to show it; with a log-in or on a unix socket, also to "
        "block and release users and clients.",
    )
    store_password_file = STORE_OPTIONS["store_password_file"]
    store_ca_file = STORE_OPTIONS["store_ca_file"]
    store_prefix = STORE_OPTIONS["store_prefix"]
    store_timeout = STORE_OPTIONS["store_timeout"]
    try_ = option(
        PATH,
        default=None,
        help="The file of a chain (smtpd-filters.toml), to try other settings of it on the "
        "recorded sessions of the last day. The file isn't changed. Requires --recordings.",
    )
    try_chain = option(
        TEXT,
        default="",
        help="The chain of the file of --try; required only if it has several.",
    )
    recordings = option(
        PATH,
        default=None,
        help="The directory of recordings for --try: that of smtpd-filters record, or of "
        "filter-trace with --record.",
    )
    tls = option(
        SWITCH,
        default=False,
        help="Browsers reach the page by TLS, through a proxy: the cookie is sent over TLS only.",
    )


def run(options: Options, _rest: list[str]) -> int:
    """Serve the page, or write a password."""
    if options.action == "password":
        return _write_password(options)
    if options.who:
        raise ConfigError(f"serve takes no {quote(options.who[0])}")
    import asyncio

    try:
        from smtpd_filters.web.application import Listening, application, serve
        from smtpd_filters.web.memory import Stores
    except ImportError as error:
        raise ConfigError(
            f"the page requires aiohttp and jinja2 (on Debian python3-aiohttp and python3-jinja2): "
            f"{error}"
        ) from None
    from smtpd_filters.journal.query import Journal

    access = _access(options)
    key = key_of(options.directory)
    stores = Stores(_store(options, "greylist"), _store(options, "limits"))
    trials = _trials(options)
    app = application(lambda: Journal(options.directory, key=key), access, stores, trials)
    addresses = [
        Listening(path=host) if host.startswith("/") else Listening(host, port)
        for host, port in options.listen
    ]
    ports = [str(each) for each in addresses if not each.path]
    if (stores.greylist or stores.limits) and ports and not access.knows_users:
        VERB.note(
            f"on {' and '.join(ports)} the stores of --greylist and --limits can't be changed, "
            "since every user of this machine could: that requires --passwords, or --user-header "
            "and --proxy, or --listen with a unix socket"
        )
    asyncio.run(
        serve(
            app,
            addresses,
            access,
            lambda text: VERB.note(f"ready on {text}"),
            lambda: _reload(access),
        )
    )
    return 0


def _reload(access: Access) -> None:
    """Read the password file again, after SIGHUP."""
    if access.passwords is None:
        return
    try:
        users = access.passwords.reload()
    except ConfigError as error:
        VERB.note(f"not reloaded, the users stay: {error}")
    else:
        VERB.note(f"reloaded {access.passwords.path}: {users} user{'' if users == 1 else 's'}")


def _store(options: Options, name: str) -> Callable[[], Store] | None:
    """Return a function that opens a store; None without one. Raises ConfigError."""
    address = vars(options)[name]
    if address is None:
        return None
    if address.scheme == "memory":
        raise ConfigError(f"--{name}: memory: is in the filter's process, where no other reads it")
    if address.scheme == "sqlite" and not os.access(address.path, os.R_OK | os.W_OK):
        raise ConfigError(f"--{name}: {address.path}: missing, or not writable for this user")
    values = {each: vars(options).get(each) for each in STORE_OPTIONS} | {"store": address}
    return lambda: open_store(values, VERB.note, flag=f"--{name}", guest=True)


def _trials(options: Options) -> Setup | None:
    """Return how other settings are tried. Raises ConfigError."""
    if options.try_ is None:
        for name in ("try_chain", "recordings"):
            if name in options.given:
                raise ConfigError(f"{options.options[name].shown} requires --try")
        return None
    if options.recordings is None:
        raise ConfigError("--try requires --recordings")
    from smtpd_filters.web.trials import Setup

    from .chain_file import ChainFile

    if not os.access(options.recordings, os.R_OK | os.X_OK):
        raise ConfigError(f"--recordings: {options.recordings}: missing, or not readable")
    try:
        name = ChainFile.read(options.try_).chain(options.try_chain)
    except ConfigError as error:
        raise ConfigError(f"--try: {error}") from None
    request = {
        "file": os.path.abspath(options.try_),  # noqa: PTH100  # paths as text
        "name": name,
        "recordings": os.path.abspath(options.recordings),  # noqa: PTH100
        "journal": os.path.abspath(options.directory),  # noqa: PTH100
    }
    return Setup(python("smtpd_filters.cli.trial.program"), request)


def _access(options: Options) -> Access:
    """Return who may read the page. Raises ConfigError."""
    from smtpd_filters.web.guard import LOCAL_NAMES, Access

    if options.user_header and not options.proxy:
        raise ConfigError("--user-header requires --proxy")
    if options.proxy and not (options.user_header or options.passwords):
        raise ConfigError("--proxy requires --user-header or --passwords")
    if options.user_header and options.passwords:
        raise ConfigError("--passwords and --user-header exclude each other")
    proxies = frozenset(map(_proxy, options.proxy))
    _check_names(options)
    prefix = options.prefix.rstrip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"--prefix: expected a path such as /filters, not {quote(options.prefix)}"
        )
    hosts = {each.lower() for each in options.host}
    for host, _ in options.listen:
        if host.startswith("/"):
            continue
        parsed = ip_address(host)
        hosts.add(f"[{parsed}]" if parsed.version == 6 else str(parsed))
        if parsed.is_loopback:
            hosts |= LOCAL_NAMES
    return Access(
        passwords=_passwords(options.passwords) if options.passwords else None,
        user_header=options.user_header,
        proxies=proxies,
        hosts=frozenset(hosts),
        prefix=prefix,
        secure=options.tls,
        token=read_secret(options.metrics_token, "--metrics-token"),
    )


def _check_names(options: Options) -> None:
    """Check the names of hosts, and of the field with the user. Raises ConfigError."""
    if options.user_header and not _FIELD.fullmatch(options.user_header):
        raise ConfigError(
            f"--user-header: expected the name of a field, such as X-Remote-User, not "
            f"{quote(options.user_header)}"
        )
    for each in options.host:
        if not _HOST.fullmatch(each):
            raise ConfigError(
                "--host: expected a name without a port, such as mail.example.org, not "
                f"{quote(each)}"
            )


def _passwords(path: str) -> Passwords:
    from smtpd_filters.web.passwords import Passwords

    try:
        return Passwords.read(path)
    except ConfigError as error:
        raise ConfigError(f"--passwords: {error}") from None


def _proxy(text: str) -> str:
    """Return a proxy's address as connections have it. Raises ConfigError."""
    if text == "unix":
        return text
    try:
        address = ip_address(text)
    except ValueError:
        raise ConfigError(f"--proxy: expected an IP address or unix, not {quote(text)}") from None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _write_password(options: Options) -> int:
    from smtpd_filters.web.passwords import MAX_PASSWORD, with_user

    if options.passwords is None:
        raise ConfigError("password requires --passwords FILE")
    if len(options.who) != 1:
        raise ConfigError("password requires one USER")
    [user] = options.who
    password = _read_password()
    if not password.isprintable():
        raise ConfigError("the password has control characters, or bytes that are not UTF-8")
    if not password or len(password) > MAX_PASSWORD:
        raise ConfigError(f"expected a password of 1 to {MAX_PASSWORD} characters")
    with_user(options.passwords, user, password)
    VERB.note(f"{options.passwords}: wrote {user}; a page that runs reads it at SIGHUP")
    return 0


def _read_password() -> str:
    """Read a password from the terminal or the standard input. Raises ConfigError."""
    if sys.stdin is None:
        raise ConfigError("stdin is closed")
    try:
        if not sys.stdin.isatty():
            return sys.stdin.readline(_MAX_INPUT).rstrip("\r\n")
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise ConfigError("the two passwords differ")
    except EOFError:
        raise ConfigError("no password was typed") from None
    except UnicodeError:
        raise ConfigError("the password has bytes that are invalid in the locale") from None
    return password


VERB = Verb(
    "web",
    run,
    options=Options,
    description="Show what filters decide, on a page for the browser: messages over time, why each "
    "was refused, who sends most. It reads the files of smtpd-filters journal.",
    ending="The exit status is 0 after SIGTERM, and 2 if it can't start.",
)
