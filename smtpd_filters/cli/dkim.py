"""`smtpd-filters dkim`: keys for DKIM and their records in the DNS.

Invariants
----------
*Nothing is overwritten*: a new key never replaces a file, and a table of keys is replaced in one
step, only after the new key is published.
*Private*: a key's file is created with its mode, for root and the group of smtpd's user.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from smtpd_filters.authentication.dkim.keys import parse_record
from smtpd_filters.authentication.dkim.private_keys import new_private_key
from smtpd_filters.authentication.dkim.tags import Problem
from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.filters.dkimsign.keys import KeyTable, read_key
from smtpd_filters.filters.dkimsign.kinds import DOMAIN, SELECTOR
from smtpd_filters.lookups.dns.resolver import Resolver
from smtpd_filters.lookups.outcome import Found, NotFound, Unavailable
from smtpd_filters.settings import (
    ENDPOINT,
    INTEGER,
    LIST,
    PATH,
    Settings,
    choice,
    operand,
    option,
    table,
)
from smtpd_filters.settings.files import no_directory, replace_file

from .accounts import UnknownError, filters_user
from .verb import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.authentication.dkim.private_keys import PrivateKey

#: Bytes of a string in a TXT record (RFC 1035 section 3.3.14).
STRING = 255
MODE = 0o640
#: Between the words of a line of a table.
_SEPARATOR = re.compile(r"[ \t:]+")


class Options(Settings):
    """What to do, and with which key."""

    action = operand(
        choice("keygen", "dns", "check", "rotate"),
        required=True,
        metavar="ACTION",
        help="keygen makes a key and prints its record, dns prints the record of a key, check "
        "compares a key with its record in the DNS, rotate replaces the key of a domain in a table "
        "of keys.",
    )
    domain = option(DOMAIN, required=True, flags=("-d",), help="The domain.")
    selector = option(
        SELECTOR,
        default=None,
        flags=("-s",),
        help="The selector, which is required; for rotate, that of the new key, which must not "
        "be in use.",
    )
    key = option(
        PATH,
        default=None,
        flags=("-k",),
        help="The file of the private key. For rotate, that of the new key: by default "
        "DOMAIN.SELECTOR.key beside the old one.",
    )
    type = option(
        choice("rsa", "ed25519"),
        default="rsa",
        help="The type of a new key. Not all receivers can verify ed25519: use it beside rsa.",
    )
    bits = option(
        INTEGER(low=2048, high=4096),
        default=2048,
        help="The size of a new RSA key. The record of a larger key than 2048 may be too long for "
        "some name servers' user interfaces.",
    )
    keys = option(
        table(KeyTable),
        default=None,
        help="For rotate: the table of filter-dkimsign, as file:PATH.",
    )
    nameserver = option(
        LIST(ENDPOINT(port=53, host="ADDRESS")),
        default=(),
        help="The address of a recursive name server to use instead of those in resolv.conf(5).",
    )


def run(options: Options, _rest: list[str]) -> int:
    """Do what the operand says."""
    _refuse_unused(options)
    if options.selector is None:
        raise ConfigError("-s is required")
    if options.action == "rotate":
        return _rotate(options)
    if options.key is None:
        raise ConfigError(f"{options.action} requires -k")
    if options.action == "keygen":
        _make(options.key, options)
    key = _read(options.key, "-k: ")
    if options.action == "check":
        return _check(options, key)
    sys.stdout.write(zone_record(options.selector, options.domain, key.record()))
    return 0


def _refuse_unused(options: Options) -> None:
    """Raise ConfigError for an option without effect."""
    action = options.action
    if options.keys is not None and action != "rotate":
        raise ConfigError(f"--keys has no effect with {action}")
    if action in ("dns", "check"):
        for name in ("type", "bits"):
            if name in options.given:
                raise ConfigError(f"--{name} has no effect with {action}: the key exists")
    if options.type == "ed25519" and "bits" in options.given:
        raise ConfigError("--bits has no effect with --type ed25519: all its keys have 256 bits")


def zone_record(selector: str, domain: str, text: str) -> str:
    """Return a TXT record for a zone file, in strings that are not too long."""
    strings = [text[at : at + STRING] for at in range(0, len(text), STRING)]
    quoted = "\n\t".join(f'"{each}"' for each in strings)
    return f"{selector}._domainkey.{domain}. IN TXT (\n\t{quoted} )\n"


def _read(path: str, flag: str = "") -> PrivateKey:
    try:
        return read_key(path)[1]
    except ValueError as error:
        raise ConfigError(f"{flag}{error}") from None


def _make(path: str, options: Options) -> None:
    """Make a key in a new file, which root owns and smtpd's group may read."""
    text = new_private_key(options.type, options.bits)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}{no_directory(path)}") from None
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            group = _group()
            if group is not None:
                os.fchown(fd, 0, group)
            os.fchmod(fd, MODE)
    except OSError as error:
        with suppress(OSError):
            Path(path).unlink()
        raise ConfigError(f"{path}: {os_reason(error)}") from None


def _group() -> int | None:
    """Return the group of smtpd's user; None if it can't be given to a file."""
    if os.geteuid() != 0:
        sys.stderr.write("not root: the file belongs to you; let smtpd's group read it\n")
        return None
    try:
        return filters_user().gid
    except UnknownError as error:
        sys.stderr.write(f"{error}: let the group of smtpd's user read the file\n")
        return None


def _check(options: Options, key: PrivateKey) -> int:
    """Compare a key with its record; return 1 if receivers can't use it."""
    name = f"{options.selector}._domainkey.{options.domain}"
    problem, notes = _published(options, name, key)
    for note in notes:
        sys.stdout.write(f"{name}: {note}\n")
    sys.stdout.write(f"{name}: {problem or 'the published key is that of the file'}\n")
    return 1 if problem else 0


def _published(options: Options, name: str, key: PrivateKey) -> tuple[str, list[str]]:
    """Return why receivers can't use the record, "" if they can; and notes on it."""
    match _look_up(options, name):
        case Unavailable(cause):
            return f"can't be looked up: {cause}", []
        case NotFound(reason):
            return f"not published ({reason})", []
        case Found(records, _, gap):
            if len(records) > 1 or gap:
                return "several records, of which receivers may choose any", []
    try:
        record = parse_record(records[0])
        record.check(key.algorithm, subdomain=False)
        record.key()
    except Problem as error:
        return str(error), []
    if record.data != key.public:
        return "the published key is another one", []
    notes = ["the flag y: receivers treat the domain as testing DKIM"] if record.testing else []
    if record.strict:
        notes.append("the flag s: an identity (i=) must not be in a subdomain")
    return "", notes


def _look_up(options: Options, name: str) -> Found[bytes] | NotFound | Unavailable:
    async def ask() -> Found[bytes] | NotFound | Unavailable:
        async with Resolver(options.nameserver or None) as resolver:
            return await resolver.txt(name)

    return asyncio.run(ask())


# -- rotation ----------------------------------------------------------------------------------


def _rotate(options: Options) -> int:
    """Make the new key, or put it into the table once it is published."""
    if options.keys is None or not options.keys.table_path:
        raise ConfigError("rotate requires --keys file:PATH")
    path = options.keys.table_path
    kind = options.type
    old = [key for key in options.keys.keys.get(options.domain, ()) if key.key.kind == kind]
    if not old:
        raise ConfigError(f"--keys: {path}: no {kind} key of {options.domain}")
    if any(key.selector == options.selector for key in options.keys.keys[options.domain]):
        raise ConfigError(f"-s: {options.selector} is in use already")
    beside = Path(options.keys.path_of(old[0])).parent
    # It is written into the table, which smtpd's filter reads in another directory.
    new = str(Path(options.key or beside / f"{options.domain}.{options.selector}.key").absolute())
    if not new.isprintable():
        raise ConfigError(f"{new}: the path has characters that can't be in a table")
    if not Path(new).exists():
        _make(new, options)
        text = zone_record(str(options.selector), options.domain, _read(new).record())
        sys.stdout.write(f"{text}\nPublish this record, then run the same command again.\n")
        return 0
    key = _read(new)
    if key.kind != kind:
        raise ConfigError(f"{new}: not a key of the type {kind}")
    if status := _check(options, key):
        sys.stdout.write(
            f"{path} is unchanged. To print the record of {new} again: smtpd-filters dkim dns "
            f"-d {options.domain} -s {options.selector} -k {new}\n"
        )
        return status
    _replace(path, options, {each.selector for each in old}, new)
    selectors = ", ".join(each.selector for each in old)
    sys.stdout.write(
        f"{path}: {options.selector} replaces {selectors}\n"
        "Reload the filter (SIGHUP). Leave the old record published for a week, until all mail "
        "signed with its key has arrived; then remove it and the old key.\n"
    )
    return 0


def _replace(path: str, options: Options, old: set[str], new: str) -> None:
    """Replace the table by one with the new key in place of the first old one.

    If the path is a symbolic link, the file that it leads to is replaced.
    """
    real = Path(path).resolve()
    lines = []
    pending = f"{options.domain} {options.selector} {new}\n"
    try:
        status = real.stat()
        for line in real.read_bytes().splitlines(keepends=True):
            domain, selector = _entry(line)
            if domain == options.domain and selector in old:
                lines.append(pending.encode())
                pending = ""
            else:
                lines.append(line)
        if pending:
            raise ConfigError(f"{path}: no line with {' or '.join(sorted(old))}")
        replace_file(str(real), b"".join(lines), like=status)
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}") from None


def _entry(line: bytes) -> tuple[str, str]:
    """Return the domain and the selector of a line, in canonical form; "" if it has none."""
    words = _SEPARATOR.split(line.decode("utf-8", "replace").strip(), 2)
    try:
        return DOMAIN.parse(words[0]), SELECTOR.parse(words[1])
    except (IndexError, ValueError):
        return "", ""


VERB = Verb(
    "dkim",
    run,
    options=Options,
    description="Make keys for DKIM, print and check their records in the DNS, and rotate them. "
    "A key's file is readable to the group of smtpd's user, as filter-dkimsign needs it.",
    ending="The exit status is 1 if check, or rotate, finds that the record in the DNS is missing "
    "or is not that of the key.",
)
