"""The operator's smtpd.conf of the demonstration: parsed, shown, and adapted to the laboratory."""

from __future__ import annotations

import re
from pathlib import Path

import smtpd_filters
from smtpd_filters.testing.server import BIN, LabError, file_path
from tests.demo.neighbours import SMTP, SUBMISSION

FIXTURES = Path(smtpd_filters.__file__).resolve().parents[1] / "fixtures" / "demo"
CONF = FIXTURES / "smtpd.conf"
ZONE = FIXTURES / "zone.json"
SESSIONS = FIXTURES / "neighbours.session"

_FILTER = re.compile(r'^filter "([\w-]+)" proc-exec "([^"]+)"$', re.MULTILINE)
_LISTEN = re.compile(r"^listen on all (.*)filter (?:\{ (.*) \}|(\S+))$", re.MULTILINE)


def commands(conf: str) -> dict[str, str]:
    """Return the filters that a configuration declares, each with its command line."""
    return dict(_FILTER.findall(conf))


def chains(conf: str) -> dict[int, list[str]]:
    """Return the names of the filters at each port, in the order of their requests."""
    return {
        SUBMISSION if "port submission" in options else SMTP: re.findall(r"[\w-]+", many or one)
        for options, many, one in _LISTEN.findall(conf)
    }


def laboratory(conf: str, rspamd: str) -> str:
    """Return the configuration, with replacements for what a laboratory can't provide.

    `rspamd` is the address of the scanner there. Certificate and aliases are where the laboratory
    has them, users are in a table instead of passwd(5), "all" is a group of interfaces that OpenBSD
    alone has, the filters are those of this checkout and also log mail that passes. Their flags and
    the rules for mail stay as they are.
    """
    replacements = {
        r'cert "[^"]+"': 'cert "/srv/lab/certificate.pem"',
        r'key "[^"]+"': 'key "/srv/lab/key.pem"',
        r"file:/etc/mail/aliases": f"file:{file_path('aliases')}",
        r'proc-exec "(filter-[^"]+)"': rf'proc-exec "{BIN}/\1 -v"',
        r"/filter-rspamd ": f"/filter-rspamd -url {rspamd} ",
        r"listen on all ": "listen on lo ",
        r" auth filter": " auth <credentials> filter",
        r"maildir junk alias <aliases>": (
            'maildir "/srv/mail/%{user.username}" junk alias <aliases> userbase <users>'
        ),
    }
    for pattern, replacement in replacements.items():
        conf, count = re.subn(pattern, replacement, conf)
        if not count:
            raise LabError(f"{CONF}: not as expected, no match for {pattern}")
    return conf
