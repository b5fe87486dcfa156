r"""A simulated smtpd for testing a filter.

`Conversation` is smtpd's side, in the test's process and without descriptors. It sends the filter
only what it registered, in smtpd's order, and reacts to an answer as smtpd does: after a refused
`MAIL` there is no transaction, a rewritten sender is reported with its old address, junk adds an
`X-Spam` field, and so on. The oracle (`smtpd_filters.oracle`) checks every byte: a test fails if a
real smtpd would exit, hang or do something other than the filter intended.

>>> from smtpd_filters import PROCEED, Filter, Proceed, Reject, Session, Settings, option
>>> from smtpd_filters.settings import TEXT
>>> from smtpd_filters.testing import Conversation
>>>
>>> class Postmaster(Filter):
...     '''Refuse mail that claims to be from a postmaster.'''
...
...     class Options(Settings):
...         domain = option(TEXT, default="example.org", help="Whose postmaster may write.")
...
...     def mail_from(self, session: Session, address: str) -> Proceed | Reject:
...         user, _, domain = address.partition("@")
...         if user == "postmaster" and domain != self.settings.domain:
...             return Reject("550 5.7.1 No postmaster of ours").because(f"from {address}")
...         return PROCEED
>>>
>>> with Conversation(Postmaster, "--domain", "example.net") as smtpd:
...     client = smtpd.connect(rdns="mail.example.com", address="192.0.2.1")
...     client.ehlo("mail.example.com").verb
...     client.mail_from("postmaster@example.org").reply
...     client.mail_from("postmaster@example.net").verb
...     client.rcpt_to("you@example.org").verb
...     client.message(b"Subject: hello\r\n\r\n.\r\n").body
...     client.quit().verb
...     smtpd.log[0].partition(" reply=")[0]
'proceed'
'550 5.7.1 No postmaster of ours'
'proceed'
'proceed'
b'.\n'
'proceed'
'7641df9700000001 postmaster mail-from result=reject reason="from postmaster@example.org"'

Each step of a client returns a `Verdict`: `verb` is the filter's decision, `reply` the line that
refuses the client, `parameter` the one that smtpd continues with, `asked` whether the filter has
registered the phase. A message returns a `Delivery`, which also has the lines that the filter
returned. A step that smtpd would not accept at that point raises `RuntimeError`: the test is wrong,
or the client was refused before.

Coroutines run on the conversation's own event loop until they have answered. Time is real, so a
test of a missed deadline should set a short one (`"--deadline", "0.01"`). A plain handler that
doesn't return is not interrupted here, as it would be in a process.

`play` plays a recording to a filter, and `DNSServer` answers the filter's look-ups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError
from smtpd_filters.recording.replay import Replay, Step
from smtpd_filters.recording.verdict import wire

from .client import HOST, Client
from .in_process import Served
from .peer import Peer

if TYPE_CHECKING:
    from os import PathLike
    from typing import Self

    from smtpd_filters.filter import Filter
    from smtpd_filters.recording import Recording
    from smtpd_filters.scoring.rules import Rules
    from smtpd_filters.settings import Settings

    from .in_process import Filters


class Conversation(Peer):
    """A filter or a chain of filters, and the simulated smtpd that uses it.

    `filters` is a class, with `flags` as in smtpd.conf or with `settings` created in code; or an
    instance with its settings; or a list for a chain, of instances, of classes, and of tuples of a
    class and its flags. `setup` is called here. `nameserver` is the address and port that a
    filter's resolver uses unless `--nameserver` is given. A store is in memory unless `--store` is
    given. `protocol` is the protocol version, `smtpd_version` the server's, by default one that
    uses the protocol. `admd` is the authserv-id. `rules` are the points and thresholds of a chain
    (`smtpd_filters.scoring.rules.Rules`).

    An error in the filter's code fails the test (`verify`), unless `errors` is True.

    Raises ConfigError as the executable does at its start.
    """

    def __init__(  # noqa: PLR0913  # given by name
        self,
        filters: Filters,
        *flags: str,
        settings: Settings | None = None,
        nameserver: tuple[str, int] | None = None,
        protocol: tuple[int, int] = (0, 7),
        smtpd_version: str = "",
        admd: str = HOST,
        errors: bool = False,
        rules: Rules | None = None,
    ) -> None:
        served = Served(filters, flags, settings, nameserver, rules)
        super().__init__(served, protocol, smtpd_version)
        self.admd = admd
        self._errors_allowed = errors
        self.filters: list[Filter] = self._served.chain.filters
        self._clients = 0

    @property
    def log(self) -> list[str]:
        """The lines that the filter has written to smtpd's log."""
        return self._served.log.lines

    @property
    def errors(self) -> list[str]:
        """The errors in the filters' code, one text each.

        They are exceptions of handlers and event methods, decisions that a handler may not
        return, and coroutines that were never awaited. `UnavailableError` and a missed deadline are
        not among them.
        """
        return self._served.log.errors

    def __enter__(self) -> Self:
        self._send(self._smtpd.configure(admd=self.admd))
        if not self._smtpd.ready:
            raise AssertionError("the filter is not ready")
        return self

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            self._served.close()
        finally:
            if kind is None:
                self.verify()
            elif error is not None and self.errors and not self._errors_allowed:
                # They are often the reason why the test failed.
                listed = "".join(f"\n  {each}" for each in self.errors)
                error.add_note(f"errors in the filter:{listed}")

    def verify(self) -> None:
        """Raise AssertionError if a real smtpd would have exited, hung or misbehaved.

        `errors` raise it as well, unless `errors=True` was given. The `with` block calls it at its
        end.
        """
        self.oracle.finish()
        self.oracle.verify()
        if self.errors and not self._errors_allowed:
            listed = "".join(f"\n  {error}" for error in self.errors)
            raise AssertionError(f"errors in the filter (errors=True allows them):{listed}")

    def reload(self) -> None:
        """Reload the filter's tables from their files, as SIGHUP does."""
        for _ in self._served.chain.reload():
            pass

    def refresh(self) -> None:
        """Run `Filter.refresh`, as at the start and at every `Filter.refresh_interval`."""
        self._served.refresh()

    def advance(self, seconds: float) -> None:
        """Advance the filters' clock, `Filter.now`.

        By it entries of a store in memory expire, and the answers that a `Service` keeps. Other
        stores, deadlines, look-ups, what a resolver keeps, and the time for which a server is
        passed over use the real time.
        """
        for filter_ in self.filters:
            filter_.advanced += seconds

    def connect(  # noqa: PLR0913  # the properties of a client
        self,
        rdns: str | None = "mail.example.com",
        address: str = "192.0.2.1",
        *,
        fcrdns: str = "pass",
        port: int = 33174,
        local: bool = False,
        dest: str = "198.51.100.25:25",
        tls: str = "",
        reported: bool = True,
    ) -> Client:
        """Connect a client; `Client.greeting` is the verdict on its connection.

        With `rdns=None` the client has no reverse name (then `fcrdns` is fail, unless it is error).
        With `local` it uses smtpd's own socket. `tls` is the cipher of a connection that is
        encrypted from its start, such as `smtpd_filters.testing.client.TLS`. With `reported=False`
        the filter gets no `link-connect`.
        """
        self._clients += 1
        session = b"%016x" % (0x7641DF97 << 32 | self._clients)
        name = rdns or "<unknown>"
        if rdns is None and fcrdns == "pass":
            fcrdns = "fail"
        host = f"[{address}]" if ":" in address else address
        source = f"{host}:{port}".encode()
        if local:
            host, source = "local", b"unix:/var/run/smtpd.sock"
            dest = "unix:/var/run/smtpd.sock"
        client = Client(self, session, name, host)
        if reported:
            self.report("link-connect", session, wire(name), fcrdns.encode(), source, dest.encode())
        client.begin(tls)
        return client


def play(
    recording: Recording | str | PathLike[str],
    filters: Filters,
    *flags: str,
    settings: Settings | None = None,
    nameserver: tuple[str, int] | None = None,
    protocol: tuple[int, int] | None = None,
) -> list[Step]:
    """Play a recording to a filter; return the steps with their new and recorded verdicts.

    `filters`, `flags`, `settings` and `nameserver` are those of `Conversation`. `protocol` is the
    protocol version to use; the default is that of the recording. The `verdict` of a step is None
    if the session ended before it. Raises AssertionError if a real smtpd would have exited, hung or
    misbehaved, and ConfigError for a file without a session.
    """
    from smtpd_filters.recording import Recording  # here, since a parameter has this name

    if not isinstance(recording, Recording):
        name, recording = recording, Recording.read(recording)
        if not recording.sessions():
            raise ConfigError(f"{name}: no session in it")
    played = Replay(recording, protocol=protocol)
    Served(filters, flags, settings, nameserver).play(played)
    return played.outcomes
