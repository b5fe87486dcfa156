r"""A filter under test: a conversation with an smtpd that is not there.

`Conversation` is smtpd's side, within the process and without descriptors.  It asks the filter
only what it registered for, reports what happens in the order in which smtpd reports it, and does
with an answer what smtpd does: behind a refused ``MAIL`` there is no transaction, a rewritten
sender is reported by its old address, junk comes with an ``X-Spam`` field, and so on.  Every byte
passes the oracle (`smtpd_filters.oracle`): a test fails when a real smtpd would exit, hang
or do something else than the filter meant.

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

Each step of a client gives a `Verdict`: ``verb`` is what the filter decided, ``reply`` the line
with which the client was refused, ``parameter`` what smtpd goes on with, ``asked`` whether the
filter asked for the phase at all.  A message gives a `Delivery` as well: the lines that came back.
A step that smtpd would not take at that point is a `RuntimeError`: the test is wrong, or the client
was refused before.

Coroutines run on an event loop of the conversation's own, until they have answered; time is the
real one, so let a filter that is to miss its deadline have a short one (``"--deadline", "0.01"``).
A plain handler that does not return is not interrupted here, as it would be in a process.

`play` plays a recording to a filter, and `DNSServer` answers what the filter looks up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from smtpd_filters.settings import Settings

    from .in_process import Filters


class Conversation(Peer):
    """A filter, or a chain of them, and the smtpd that it serves.

    ``filters``: a class, which is given ``flags`` as in smtpd.conf or ``settings`` made in code;
    or an instance made with its settings; or several instances, for a chain.  `setup` is called
    here.  ``nameserver`` is the address and port that a filter's resolver asks unless its
    ``--nameserver`` is given.  ``protocol`` is the version spoken, ``smtpd_version`` that of the
    server, by default one that speaks the protocol.  ``admd`` is the authserv-id.

    Raises ConfigError as the executable would at its start.
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
    ) -> None:
        served = Served(filters, flags, settings, nameserver)
        super().__init__(served, protocol, smtpd_version)
        self.admd = admd
        self.filters: list[Filter] = self._served.chain.filters
        self._clients = 0

    @property
    def log(self) -> list[str]:
        """The lines that the filter has written to smtpd's log."""
        return self._served.log.lines

    def __enter__(self) -> Self:
        self._send(self._smtpd.configure(admd=self.admd))
        if not self._smtpd.ready:
            raise AssertionError("the filter is not ready")
        return self

    def __exit__(self, kind: object, _error: object, _traceback: object) -> None:
        try:
            self._served.close()
        finally:
            if kind is None:
                self.verify()

    def verify(self) -> None:
        """AssertionError that lists what smtpd would not have survived or done otherwise.

        Called at the end of the ``with`` block.
        """
        self.oracle.finish()
        self.oracle.verify()

    def reload(self) -> None:
        """Have the filter reload its tables from their files, as SIGHUP does."""
        for _ in self._served.chain.reload():
            pass

    def refresh(self) -> None:
        """Have the filter do what it does at the start and every `Filter.refresh_interval`."""
        self._served.refresh()

    def connect(  # noqa: PLR0913  # all that can be said of a client
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
        """Let a client come; `Client.greeting` is the verdict on its connection.

        ``rdns`` None is a client without a reverse name (then ``fcrdns`` is fail, unless it is
        error).  ``local`` is one at smtpd's own socket.  ``tls`` is the cipher of a connection that
        is encrypted from its start, such as `smtpd_filters.testing.client.TLS`.  ``reported`` False
        is one whose ``link-connect`` never comes: the filter knows nothing of it.
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
    protocol: tuple[int, int] | None = None,
) -> list[Step]:
    """Play a recording to a filter; its verdicts, each beside the one recorded.

    The filter is given as to `Conversation`; ``protocol`` is the version to be spoken, by default
    the recorded one.  A step's ``verdict`` is None where it did not come to the question any more.
    Raises AssertionError when smtpd would not have survived it.
    """
    from smtpd_filters.recording import Recording  # the name is the parameter's

    if not isinstance(recording, Recording):
        recording = Recording.read(recording)
    played = Replay(recording, protocol=protocol)
    Served(filters, flags, settings).play(played)
    return played.outcomes
