"""All filters of the package as a chain in one process: the memory that it takes."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from smtpd_filters.authentication.dkim.keys import ED25519
from smtpd_filters.authentication.dkim.private_keys import new_private_key
from smtpd_filters.cli.listing import discover
from smtpd_filters.testing.dns import DNSServer, host, merge
from smtpd_filters.testing.rspamd.stub import RspamdStub
from tests.bench.player import Player
from tests.bench.workloads import message, sessions
from tests.filters.clamav.stub import Clamd
from tests.filters.milter.stub import milter
from tests.filters.spamd.stub import SpamdStub

MIB = 1 << 20
#: Sessions, and how many at a time.
SESSIONS, CONCURRENT = 2_000, 50
#: Settings without which a filter has nothing to do; words in capitals are a folder and daemons.
NEEDED = {
    "clamav": 'clamd = ["CLAMD"]',
    "correspondents": 'store = "sqlite:FOLDER/correspondents"',
    "dkimsign": 'domain = ["example.net"]\nselector = "s"\nkey = "FOLDER/key"',
    "dnsbl": 'client = ["bl.example"]\nhelo = ["bl.example"]\nsender = ["bl.example"]',
    "fcrdns": "verify = true",
    "greylist": 'store = "sqlite:FOLDER/greylist"',
    "limit": 'limit = ["client messages 1000000/1h"]\nstore = "sqlite:FOLDER/limit"',
    "mailfrom": 'domains = "example.com"\ncheck-header = true',
    "milter": 'milter = ["MILTER"]',
    "policy": """server = ["exec:/bin/sed -u -n 's/^$/action=DUNNO\\\\n/p'"]""",
    "rcpt": 'domains = "example.org"\nunknown-domain = "log"',
    "rewrite": 'canonical = "{ a@b.example = c@d.example }"',
    "rspamd": 'url = ["RSPAMD"]',
    "senderscore": "junk-below = 50",
    "spamd": 'spamd = ["ASSASSIN"]',
    "tls": 'require = ["any"]',
}
#: The last of a chain: nothing may change what it has signed.
LAST = "dkimsign"
ZONE = merge(host("mail.example.net", "192.0.2.1"), {"example.net": {"MX": "10 mail.example.net"}})


def declared(places: dict[str, str], nameserver: str) -> str:
    """Return a chain file with every filter of the package."""
    found = {cls.name: cls for cls in discover()[0]}
    tables = []
    for name, cls in found.items():
        # All that is found out is found out, and all mail is accepted.
        lines = [f"[filter.{name}]", "dry-run = true", NEEDED.get(name, "")]
        if "nameserver" in cls.Options.options:
            lines.append(f'nameserver = ["{nameserver}"]')
        tables.append("\n".join(lines))
    names = sorted(found, key=lambda name: (name == LAST, name))
    text = f"[chain.all]\nfilters = {names}\n\n" + "\n\n".join(tables) + "\n"
    for word, place in places.items():
        text = text.replace(word, place)
    return text


def measure() -> dict[str, float]:
    """Return how many filters there are, and the MiB that they need, ready and after sessions."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = stack.enter_context(DNSServer(ZONE))
        places = {
            "FOLDER": str(folder),
            "CLAMD": stack.enter_context(Clamd()).address,
            "ASSASSIN": stack.enter_context(SpamdStub()).server,
            "MILTER": stack.enter_context(milter()).address,
            "RSPAMD": stack.enter_context(RspamdStub(keep=0)).url,
        }
        text = declared(places, f"{names.address}:{names.port}")
        path, key = folder / "chain.toml", folder / "key"
        path.write_text(text)
        key.write_bytes(new_private_key(ED25519, 0))
        for each in (path, key):
            each.chmod(0o600)
        command = [sys.executable, "-m", "smtpd_filters.cli.chain", "--config", str(path)]
        with Player(command) as player:
            ready = player.memory()
            sessions(player, SESSIONS, CONCURRENT, message(12))
            later = player.memory()
    return {
        "filters": text.count("dry-run"),
        "USS MiB when ready": ready[0] / MIB,
        "RSS MiB when ready": ready[1] / MIB,
        "USS MiB": later[0] / MIB,
        "RSS MiB": later[1] / MIB,
    }
