"""The process of a trial that has one variant of the chain, and plays the filter to `program`.

It gets the facts, and a file for notes of what they lack, as open descriptors. As under smtpd stdin
and stdout are one socket.

Invariants
----------
*Confined first*: the file and its tables are read, then everything is given up that a filter could
reach others with, and only then filters are set up. Without the strict sandbox nothing is played.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from smtpd_filters.addresses.tags import TAGS
from smtpd_filters.cli.chain_file import ChainFile
from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.dns.recorded import RecordedResolver
from smtpd_filters.lookups.dns.records import decode
from smtpd_filters.lookups.dns.setting import ResolverSetting
from smtpd_filters.main import make_chain, serve_chain, set_up
from smtpd_filters.protocol.decisions import MAX_POINTS
from smtpd_filters.sandbox import Needs, confinement
from smtpd_filters.scoring.rules import FilterRules
from smtpd_filters.settings import Pool, ProcessSettings, die

from .changes import outside
from .stand_in import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.chain import Chain
    from smtpd_filters.cli.chain_file import Declared
    from smtpd_filters.main import Ready
    from smtpd_filters.runtime.log import Log
    from smtpd_filters.settings import Shared

PROG = "trial"
#: Bytes of memory for the filters; their tables are loaded before.
MEMORY = 256 << 20


class RecordedPool(Pool):
    """Resources that answer from what was recorded: resolvers, and nothing else."""

    def __init__(self, resolver: RecordedResolver) -> None:
        super().__init__()
        self._resolver = resolver

    def get(self, setting: Shared[Any], filter_: Any) -> Any:
        """Return the resolver. Raises ConfigError for anything else."""
        if not isinstance(setting, ResolverSetting):
            raise ConfigError(f"{filter_.name}: what it asks is not recorded")
        return self._resolver


def confine() -> None:
    """Give up everything but the loading of modules. Raises ConfigError if the system can't."""
    needs = Needs()
    needs.memory = MEMORY
    missing = confinement.confine(needs)
    if missing:
        raise ConfigError(f"trials require the strict sandbox: {'; '.join(missing)}")


def chain_of(facts: dict[str, Any], log: Log, missing: Callable[[str], object]) -> Chain:
    """Return the chain of the facts, in the sandbox. Raises ConfigError."""
    # *Trusted* (`chain_file`): the page has just read this file, and sends what it has.
    file = ChainFile(facts["file"], facts["content"])
    name = facts["chain"]
    if (change := facts["change"]) is not None:
        file = file.with_changes(*change)
    TAGS.delimiter = file.process(name).sub_addr_delim
    declared = [each for each in file.declared(name) if each.name in facts["filters"]]
    repeated = {each.name for each in declared if each.name in facts["repeated"]}
    for each in declared:
        if each.name not in repeated and (why := outside(each)[0]):
            raise ConfigError(f"{each.name}: {why}")
    confine()
    outcomes = {
        question: decode(record, question.partition(" ")[0])
        for question, record in facts["lookups"].items()
    }
    pool = RecordedPool(RecordedResolver(outcomes, missing))
    ready: list[Ready] = []
    for each in declared:
        if each.name in repeated:
            stand_in = StandIn(
                each.name,
                {id_: of.get(each.name, []) for id_, of in facts["verdicts"].items()},
                facts["phases"].get(each.name, ()),
                _bounds(each),
                missing,
            )
            each.rules = FilterRules()  # the journal has the points already
            ready.append(set_up(stand_in, log, each.policy, pool))
        else:
            ready.append(set_up(each.make(), log, each.policy, pool))
    return make_chain(ready, log, file.rules(name, declared))


def _bounds(declared: Declared) -> tuple[float, float]:
    """Return the least and the most points that a filter gives, as far as its settings say."""
    score = declared.rules.score
    if score is None:
        return declared.kind.points or (-MAX_POINTS, MAX_POINTS)
    return min(0.0, *score.values()), max(0.0, *score.values())


def main() -> int:
    """Serve with one variant: the descriptors of the facts and of the notes are arguments."""
    facts_at, notes = map(int, sys.argv[1:3])
    os.lseek(facts_at, 0, os.SEEK_SET)
    with os.fdopen(facts_at, encoding="utf-8") as file:
        facts = json.load(file)

    def missing(what: str) -> None:
        os.write(notes, f"{what}\n".encode("utf-8", "backslashreplace"))

    try:
        return serve_chain(
            lambda log: chain_of(facts, log, missing),
            process=ProcessSettings(sandbox="off"),  # `chain_of` is in it already
            prog=PROG,
        )
    except ConfigError as error:
        die(error, PROG)
