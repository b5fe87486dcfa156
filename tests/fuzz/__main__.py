"""The fuzzer as a program: `python -m tests.fuzz [PARSER] [libFuzzer's options] [CORPUS...]`.

It fuzzes the protocol and the milter protocol, or with PARSER (`OTHERS`) the reader of MIME, or the
parser of the replies of LDAP servers, spamd, clamd or policy servers.

Inputs that fail are left in `build/fuzz`; `python -m tests.fuzz FILE` runs one of them again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "smtpd_filters.protocol",
        "smtpd_filters.runtime.engine",
        "smtpd_filters.runtime.messages",
        "smtpd_filters.chain",
        "smtpd_filters.session",
        "smtpd_filters.message",
        "smtpd_filters.milter",
        "smtpd_filters.mime",
        "smtpd_filters.tables.remote.ldap_client",
        "smtpd_filters.filters.clamav",
        "smtpd_filters.filters.policy",
        "smtpd_filters.filters.spamd",
        "smtpd_filters.lookups.spamd",
        "smtpd_filters.supervise",
    ]
):
    from tests.fuzz import (
        fuzz_clamd,
        fuzz_ldap,
        fuzz_mime,
        fuzz_policy,
        fuzz_protocol,
        fuzz_spamd,
    )

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
OTHERS = {
    "clamd": fuzz_clamd,
    "ldap": fuzz_ldap,
    "mime": fuzz_mime,
    "policy": fuzz_policy,
    "spamd": fuzz_spamd,
}


def main() -> None:
    """Make the corpus and fuzz."""
    arguments = sys.argv[1:]
    target, build = fuzz_protocol.fuzz, BUILD
    make_corpus = fuzz_protocol.corpus
    if arguments and arguments[0] in OTHERS:
        name = arguments.pop(0)
        other = OTHERS[name]
        target, make_corpus, build = other.fuzz, other.corpus, BUILD / name
    if all(argument.startswith("-") for argument in arguments):
        make_corpus(build / "corpus")
        grown = build / "grown"
        grown.mkdir(exist_ok=True)
        arguments += [str(grown), str(build / "corpus")]
    options = ["-max_len=16384", "-timeout=25", "-rss_limit_mb=1024", "-print_final_stats=1"]
    options += [f"-artifact_prefix={build}/"]
    atheris.Setup([sys.argv[0], *options, *arguments], target)
    atheris.Fuzz()


main()
