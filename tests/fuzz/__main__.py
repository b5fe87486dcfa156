"""The fuzzer as a program: `python -m tests.fuzz [libFuzzer's options] [CORPUS...]`.

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
        "smtpd_filters.supervise",
    ]
):
    from tests.fuzz import fuzz_protocol

BUILD = Path(__file__).parents[2] / "build" / "fuzz"


def main() -> None:
    """Make the corpus and fuzz."""
    arguments = sys.argv[1:]
    if all(argument.startswith("-") for argument in arguments):
        fuzz_protocol.corpus(BUILD / "corpus")
        grown = BUILD / "grown"
        grown.mkdir(exist_ok=True)
        arguments += [str(grown), str(BUILD / "corpus")]
    options = ["-max_len=16384", "-timeout=25", "-rss_limit_mb=1024", "-print_final_stats=1"]
    options += [f"-artifact_prefix={BUILD}/"]
    atheris.Setup([sys.argv[0], *options, *arguments], fuzz_protocol.fuzz)
    atheris.Fuzz()


main()
