"""The setting that declares a filter's resolver and its flags."""

from __future__ import annotations

from functools import partial

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.settings import ENDPOINT, LIST, SECONDS, Shared, option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.settings import Option

    from . import Resolver

    #: The timeout of a query in the first round, and the deadline of a look-up, in seconds.
    Timing = Callable[[Any], tuple[float, float]]

#: A look-up has two rounds over the servers; the second has twice the timeout.
ROUNDS = 2
LOOKUP = 4
#: The domain of a probe: every recursive name server can look it up, and reverse names need it.
EVERYWHERE = "in-addr.arpa"


class ResolverSetting(Shared["Resolver"]):
    """The flags `--nameserver` and `--timeout`, and the resolver that they configure."""

    def __init__(
        self, *, nameserver: str, timeout: str | None, takes: str, timing: Timing | None
    ) -> None:
        """See `Resolver.setting`."""
        if takes.endswith(".") or takes != takes.strip():
            raise TypeError(
                f"takes={takes!r}: the end of a sentence without its full stop, as in "
                "'a client, with two look-ups, 16 s'"
            )
        self._timing = timing
        servers: Any = option(
            LIST(ENDPOINT(port=53, host="ADDRESS")),
            default=(),
            help="The address of a recursive name server to use instead of those in "
            f"resolv.conf(5), which is read at the start only. {nameserver}",
        )
        options: dict[str, Option] = {"nameserver": servers}
        and_takes = f", and {takes}" if takes else ""
        if timeout is not None:
            seconds: Any = option(
                SECONDS(low=0.01, high=60),
                default=2.0,
                help=timeout
                or "How long to wait for a name server before trying the next. The second round "
                f"waits twice as long, so a look-up takes at most 8 s by default{and_takes}.",
            )
            options["timeout"] = seconds
        self.options = options

    def key(self, filter_: Any) -> tuple[object, ...]:
        """Return the key by which filters share a resolver: name servers, timeout, deadline."""
        return (filter_.pool.value(filter_, "nameserver"), *self._times(filter_))

    def _times(self, filter_: Any) -> tuple[float, float]:
        if self._timing is not None:
            return self._timing(filter_)
        timeout: float = filter_.pool.value(filter_, "timeout")
        return timeout, LOOKUP * timeout

    def check(self, filter_: Any) -> None:
        """Log a `--timeout` without effect."""
        note_timeout(filter_)

    @staticmethod
    def refuse_unused(filter_: Any, needed: str) -> None:
        """Raise ConfigError if `--nameserver` is given without a flag with look-ups, `needed`."""
        if vars(filter_.settings)["nameserver"]:
            raise ConfigError(f"--nameserver requires {needed}")

    def open(self, filter_: Any) -> Resolver:
        """Create the resolver."""
        from .resolver import SharedResolver  # only for filters with look-ups

        timeout, deadline = self._times(filter_)
        try:
            return SharedResolver(
                filter_.pool.value(filter_, "nameserver") or None,
                timeout=timeout,
                deadline=deadline,
                attempts=ROUNDS,
            )
        except ConfigError as error:
            raise ConfigError(f"--nameserver: {error}") from None
        except ImportError as error:
            raise ConfigError(f"DNS look-ups require dnspython: {error}") from None

    def declare(self, filter_: Any, needs: Needs) -> None:
        """Declare the name servers, by UDP and TCP, and a descriptor for each query in flight."""
        from .resolver import MAX_IN_FLIGHT

        resolver: Resolver = getattr(filter_, self.name)
        for server in resolver.servers:
            needs.to_connect(*server)
            needs.to_connect(*server, udp=True)
        needs.to_open(MAX_IN_FLIGHT)

    def probes(self, filter_: Any) -> Iterator[Probe]:
        """Yield a probe for each name server: a query that any of them can answer."""
        from smtpd_filters.runtime.probes import Probe

        resolver: Resolver = getattr(filter_, self.name)
        timeout, _ = self._times(filter_)
        for server in resolver.servers:
            subject = f"name server {server[0]} port {server[1]}"
            yield Probe(subject, partial(_query, server, timeout))


async def _query(server: tuple[str, int], seconds: float) -> str:
    """Query one name server; return why it can't be used, or ""."""
    from .resolver import Resolver

    async with Resolver([server], timeout=seconds, deadline=seconds, attempts=1) as resolver:
        outcome = await resolver.query(EVERYWHERE, "NS")
    return outcome.cause if isinstance(outcome, Unavailable) else ""


def note_timeout(filter_: Any) -> None:
    """Log that a given `--timeout` has no effect because it exceeds `--deadline`."""
    timeout = vars(filter_.settings)["timeout"]
    if "timeout" in filter_.settings.given and timeout > filter_.deadline:
        given, over = SECONDS.show(timeout), SECONDS.show(filter_.deadline)
        filter_.log.event(f"--timeout {given} has no effect: --deadline {over} is shorter")
