"""The addresses of milters, in the notations of Postfix and of milters.

Postfix writes `inet:host:port`, `unix:/path` and `local:/path` (smtpd_milters in postconf(5)),
milters write `inet:port@host` and `inet6:port@host` (smfi_setconn). A bare `host:port` or path is
understood as well.
"""

from __future__ import annotations

from smtpd_filters.lookups.stream.address import Address, checked_path
from smtpd_filters.settings import Kind
from smtpd_filters.settings.quoting import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.sandbox import Needs

_UNIX = ("unix:", "local:")
_INET = ("inet:", "inet6:")


class _Endpoint(Kind[Address]):
    metavar = "inet:HOST:PORT|inet:PORT@HOST|unix:PATH"
    noun = "inet:HOST:PORT, inet:PORT@HOST or unix:PATH"

    def parse(self, text: str) -> Address:
        for prefix in _UNIX:
            if text.startswith(prefix):
                return Address(path=checked_path(text.removeprefix(prefix)))
        rest = text
        for prefix in _INET:
            rest = rest.removeprefix(prefix)
        port, at, host = rest.partition("@")
        if at:
            host = host.strip("[]")
            rest = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        elif rest != text and rest.isdigit():
            rest = f"localhost:{rest}"  # libmilter: any interface of this machine
        try:
            return Address.parse(rest)
        except ValueError:
            raise ValueError(f"expected {self.noun}, not {quote(text)}") from None

    def show(self, value: Address) -> str:
        return f"unix:{value.path}" if value.path else f"inet:{value.label}"

    def declare(self, value: Address, needs: Needs) -> None:
        value.declare(needs)


#: The kind of a milter's address.
ENDPOINT = _Endpoint()
