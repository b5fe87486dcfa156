"""`smtpd-filters dmarc report`: aggregate reports of DMARC from what filter-auth has recorded.

Invariants
----------
*Not sent by itself*: without `--send` reports are only written to files.
*Asked for*: a report is sent only to addresses that the policy names, and outside its organization
only to those that agree (`authentication.dmarc.reports.destinations`).
*Once*: a report is claimed in the store while it is submitted, and then noted as sent, so that
nothing is sent twice, by whichever machine. The claim of a process that ends in between expires.
*Bounded*: at most `--limit` mails are sent in a run.
*In turns*: of domains with the same last two labels the first come before all others' second, so
that the names of one owner don't use up the limit.
"""

from __future__ import annotations

import asyncio
import subprocess
from datetime import UTC, date, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from gzip import GzipFile
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from smtpd_filters.addresses import canonical
from smtpd_filters.authentication.dmarc.reports import Report, destinations, is_domain, xml
from smtpd_filters.authentication.inquiry import settle
from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.filters.auth.reporting import claim, day_of, end_claim, most_frequent, results_on
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.settings import (
    ENDPOINT,
    INTEGER,
    LIST,
    PATH,
    SWITCH,
    TEXT,
    Kind,
    choice,
    operand,
    option,
    package,
)
from smtpd_filters.settings.files import replace_file
from smtpd_filters.settings.quoting import printable, quote

from .stores import StoreOptions, with_store
from .streams import say
from .verb import Verb

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from smtpd_filters.authentication.dmarc.reports import Destination
    from smtpd_filters.filters.auth.reporting import Results
    from smtpd_filters.stores import Store

#: The filter whose store it reads.
FILTER = "auth"
SENDMAIL = "/usr/sbin/sendmail"
#: Seconds that sendmail may take.
PATIENCE = 60.0


class _Day(Kind[str]):
    metavar = "DATE"
    noun = "a date such as 2026-11-30"

    def parse(self, text: str) -> str:
        try:
            return date.fromisoformat(text).isoformat()
        except ValueError:
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}") from None


class _Address(Kind[str]):
    metavar = "ADDRESS"
    noun = "a mail address"

    def parse(self, text: str) -> str:
        local, _, domain = text.rpartition("@")
        plain = local and text.isascii() and text.isprintable() and is_domain(domain.lower())
        if not plain or parseaddr(text)[1] != text:
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}")
        if text.startswith("-"):
            raise ValueError("an address that begins with a hyphen can't be given to sendmail")
        return text


class _Name(Kind[str]):
    metavar = "TEXT"
    noun = "a name in UTF-8, without control characters"

    def parse(self, text: str) -> str:
        if not (text.strip() and text.isprintable()):
            raise ValueError(f"expected {self.noun}, not {quote(text)}")
        return text


class Options(StoreOptions):
    """The day, the reporter, and where reports go."""

    action = operand(
        choice("report"),
        required=True,
        metavar="ACTION",
        help="report makes the aggregate reports of a day.",
    )
    day = option(_Day(), default=None, help="The day, in UTC. By default yesterday.")
    domain = option(
        LIST(TEXT),
        default=(),
        help="Report only to the owners of these domains, at which the policies are published.",
    )
    organization = option(_Name(), required=True, help="The name of your organization.")
    email = option(
        _Address(),
        required=True,
        help="The address that answers questions about reports, from which they are sent.",
    )
    output = option(PATH, default=None, help="Write the reports to files in this directory.")
    send = option(
        SWITCH,
        default=False,
        help="Send the reports by mail to the addresses that ask for them. Addresses outside the "
        "domain's organization must agree in the DNS (RFC 9990 section 4).",
    )
    limit = option(
        INTEGER(low=1),
        default=200,
        help="The number of mails sent in one run. Domains with the same last two labels take "
        "turns with the others.",
    )
    sendmail = option(
        PATH, default=SENDMAIL, help="The program that submits mail, with sendmail's options."
    )
    nameserver = option(
        LIST(ENDPOINT(port=53, host="ADDRESS")),
        default=(),
        help="The address of a recursive name server to use instead of those in resolv.conf(5).",
    )


def run(options: Options, _rest: list[str], *, patience: float = PATIENCE) -> int:
    """Make the reports; return 1 if any could not be written or sent, or later ones are left.

    `patience` is the seconds that sendmail may take.
    """
    if not options.send and options.output is None:
        raise ConfigError("report requires --output, --send or both")
    day = options.day or day_of(time() - 86400)
    if day >= day_of(time()):
        raise ConfigError(f"--day: {day} is not over")
    folder = Path(options.output).absolute() if options.output else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--output: {folder}: not a directory")

    async def work(store: Store) -> int:
        reporting = _Reporting(options, store, day, folder, patience)
        async with Resolver(options.nameserver or None) as resolver:
            return await reporting.run(resolver)

    return with_store(options, FILTER, work, "report-to")


class _Reporting:
    """The reports of a day."""

    def __init__(
        self, options: Options, store: Store, day: str, folder: Path | None, patience: float
    ) -> None:
        self._options = options
        self._store = store
        self._day = day
        self._folder = folder
        self._patience = patience
        self._left = options.limit
        self._failed = False

    async def run(self, resolver: Resolver) -> int:
        wanted = set(map(canonical, self._options.domain))
        submitter = canonical(self._options.email.rpartition("@")[2])
        begin = int(datetime.fromisoformat(self._day).replace(tzinfo=UTC).timestamp())
        found = await results_on(self._store, self._day)
        domains = [domain for domain in found if not wanted or domain in wanted]
        if not domains:
            where = " of these domains" if wanted else ""
            _print(f"no results{where} on {self._day}")
        for domain in in_turns(domains):
            results = found.pop(domain)
            report = await self._report(results, submitter, begin)
            if not report.rows:  # a report has at least one
                continue
            messages = sum(results.counts.values())
            _print(f"{domain}: {messages} messages in {len(results.counts)} rows")
            if report.left_out:
                _print(f"  {report.left_out} rows are left out")
            data = compressed(report)
            self._write(report, data)
            if self._options.send:
                asked = destinations(domain, results.published.rua)
                for each in await settle(asked, resolver):
                    await self._send(report, data, each)
        return 1 if self._failed else 0

    async def _report(self, results: Results, submitter: str, begin: int) -> Report:
        rows = await most_frequent(self._store, results)
        return Report(
            self._options.organization,
            self._options.email,
            submitter,
            begin,
            results.published,
            rows,
            package(),
            left_out=len(results.counts) - len(rows),
        )

    def _write(self, report: Report, data: bytes) -> None:
        if self._folder is None:
            return
        path = self._folder / report.file_name
        try:
            replace_file(str(path), data)
        except OSError as error:
            self._problem(f"{path}: {os_reason(error)}")
        else:
            _print(f"  wrote {path}")

    async def _send(self, report: Report, data: bytes, to: Destination) -> None:
        """Send a report to a destination, unless it was sent there."""
        domain = report.published.domain
        if not to.address:
            # The owner's mistake is not ours; a failed look-up may pass.
            self._failed = self._failed or to.temporary
            _print(f"  not sent to {to.uri}: {to.problem}")
        elif not self._left:
            self._problem(f"  not sent to {to.address}: --limit is reached")
        elif earlier := await claim(self._store, self._day, domain, to.address):
            if earlier == "sent":
                _print(f"  sent to {to.address} before")
            else:
                self._problem(f"  not sent to {to.address}: another run is sending it, or ended")
        else:
            self._left -= 1
            await self._send_claimed(report, data, to.address)

    async def _send_claimed(self, report: Report, data: bytes, address: str) -> None:
        """Submit a report and end the claim, also if that fails or is interrupted."""
        sent = False
        try:
            problem = self._submit(mail(report, data, address), address)
            sent = not problem
        finally:
            domain = report.published.domain
            await _surely(end_claim(self._store, self._day, domain, address, sent=sent))
        if problem:
            self._problem(f"  not sent to {address}: {problem}")
        else:
            _print(f"  sent to {address}")

    def _submit(self, message: EmailMessage, address: str) -> str:
        """Give a mail to sendmail; return the problem, "" if it was taken."""
        sendmail = self._options.sendmail
        try:
            done = subprocess.run(  # noqa: S603  # the operator's own program
                [sendmail, "-i", "-f", self._options.email, "--", address],
                input=message.as_bytes(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=self._patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{sendmail}: not done within {self._patience:g} s"
        except OSError as error:
            return f"{sendmail}: {os_reason(error)}"
        if not done.returncode:
            return ""
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        return f"{sendmail}: {lines[-1] if lines else f'status {done.returncode}'}"

    def _problem(self, text: str) -> None:
        self._failed = True
        _print(text)


async def _surely(work: Awaitable[None]) -> None:
    """Await what has to be done even if the run is interrupted meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def compressed(report: Report) -> bytes:
    """Return the compressed document of a report; it is the same if the report is made again."""
    data = BytesIO()
    with GzipFile(filename="", mode="wb", fileobj=data, mtime=report.end) as file:
        file.writelines(xml(report))
    return data.getvalue()


def in_turns(domains: list[str]) -> list[str]:
    """Return domains in turns: of those with the same last two labels one in each."""
    turns: dict[str, list[str]] = {}
    for domain in domains:
        turns.setdefault(".".join(domain.split(".")[-2:]), []).append(domain)
    rounds = zip_longest(*turns.values())
    return [each for turn in rounds for each in turn if each is not None]


def mail(report: Report, data: bytes, address: str) -> EmailMessage:
    """Return the mail with a report, in its compressed form (RFC 9990 section 3.5.2)."""
    message = EmailMessage()
    message["From"] = report.email
    message["To"] = address
    message["Subject"] = report.subject
    message["Date"] = format_datetime(datetime.fromtimestamp(int(time()), UTC))
    message["Message-ID"] = f"<{report.id}@{report.submitter}>"
    message["Auto-Submitted"] = "auto-generated"
    first = datetime.fromtimestamp(report.begin, UTC).date()
    message.set_content(
        f"This is an aggregate report of DMARC for {report.published.domain}, about mail that\n"
        f"{report.organization} received on {first} (UTC). Your DMARC record asks for it.\n"
    )
    message.add_attachment(data, maintype="application", subtype="gzip", filename=report.file_name)
    return message


def _print(line: str) -> None:
    say(f"{printable(line)}\n")  # a reader that ends must not end the sending


VERB = Verb(
    "dmarc",
    run,
    options=Options,
    description="Make aggregate reports of DMARC (RFC 9990) from what filter-auth has recorded "
    "with --report-to. They are written to files, and sent only with --send.",
    ending="The exit status is 1 if a report could not be written or sent, or if --limit was "
    "reached: run the command again; it sends what is missing. It is 75 if the store fails.",
)
