"""The setting that declares a filter's HTTP service and its flags."""

from __future__ import annotations

from functools import partial

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.failover.group import CONNECTIONS, SHARE
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.settings import LIST, PATH, SECONDS, Shared, option
from smtpd_filters.settings.secrets import read_secret

from .kinds import URL, checked
from .probe import ping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self, overload

    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.settings import Option

    from .service import Service


class ServiceSetting(Shared["Service"]):
    """The flags of a service, and the service that they configure."""

    def __init__(self, flag: str, *, keep: float, required: bool = True) -> None:
        """See `Service.setting`."""
        self._flag = f"--{flag.replace('_', '-')}"
        needed: Any = {"required": True} if required else {"default": ()}
        urls: Any = option(
            LIST(URL),
            **needed,
            help="The address of the HTTP service: http[s]://HOST[:PORT][/PATH], or the path of a "
            "unix socket. If given several times, the next server is asked when the ones before it "
            "fail; a server that gave no answer three times in a row is passed over for 30 "
            "seconds. An error status or an unusable answer is an answer.",
        )
        timeout: Any = option(
            SECONDS(low=0.01, high=60),
            default=5.0,
            help="How long to wait for an answer of one server of the service.",
        )
        kept: Any = option(
            SECONDS(low=0, high=7 * 86400),
            default=keep,
            help="How long an answer of the service is used again for the same question; 0 for "
            "never.",
        )
        token: Any = option(
            PATH,
            default=None,
            help="A file whose first line is a token that the service requires (Authorization: "
            "Bearer).",
        )
        self.options: dict[str, Option] = {
            flag: urls,
            f"{flag}_timeout": timeout,
            f"{flag}_keep": kept,
            f"{flag}_token_file": token,
        }

    def key(self, filter_: Any) -> tuple[object, ...]:
        """Return all options and the deadline, by which filters share a service."""
        return (*self._values(filter_), filter_.deadline)

    def open(self, filter_: Any) -> Service:
        """Return the service; it is connected to when it is asked."""
        from .service import SharedService  # start-up time

        urls, timeout, keep, token = self._values(filter_)
        try:
            for url in urls:
                checked(url)
        except ValueError as error:
            raise ConfigError(f"{self._flag}: {error}") from None
        return SharedService(
            urls,
            timeout=timeout,
            deadline=filter_.deadline * SHARE,
            keep=keep,
            token=read_secret(token, f"{self._flag}-token-file"),
            connections=CONNECTIONS,
            clock=filter_.now,
            note=filter_.log.event,
        )

    def _values(self, filter_: Any) -> list[Any]:
        return [filter_.pool.value(filter_, name) for name in self.options]

    def declare(self, filter_: Any, needs: Needs) -> None:
        """Declare a descriptor for each connection; the option of the servers declares them."""
        urls, *_ = self._values(filter_)
        needs.to_open(CONNECTIONS * len(urls))

    def probes(self, filter_: Any) -> Iterator[Probe]:
        """Yield a probe for each server: a request for /ping, which any reply answers."""
        from smtpd_filters.runtime.probes import Probe

        urls, timeout, *_ = self._values(filter_)
        for url in urls:
            yield Probe(f"service {url}", partial(_ping, url, timeout))


class OptionalServiceSetting(ServiceSetting):
    """The flags of a service that a filter may be without: then its attribute is None."""

    def __init__(self, flag: str, *, keep: float) -> None:
        super().__init__(flag, keep=keep, required=False)

    if TYPE_CHECKING:

        @overload  # type: ignore[override]  # None as well
        def __get__(self, filter_: None, _cls: type | None = None) -> Self: ...
        @overload
        def __get__(self, filter_: object, _cls: type | None = None) -> Service | None: ...

    def __get__(self, filter_: Any, _cls: type | None = None) -> Any:
        if filter_ is None:
            return self
        urls, _, _, token = self._values(filter_)
        if urls:
            return super().__get__(filter_, _cls)
        if token is not None:
            raise ConfigError(f"{self._flag}-token-file requires {self._flag}")
        vars(filter_)[self.name] = None  # as `Shared.__get__` does
        return None


async def _ping(url: str, seconds: float) -> str:
    """Ask a server for /ping; return why it gives no reply, or ""."""
    reply = await ping(url, seconds)
    return reply.cause if isinstance(reply, Unavailable) else ""
