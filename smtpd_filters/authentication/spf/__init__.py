"""SPF (RFC 7208): whether a host may use a domain in HELO and MAIL FROM.

The engine is pyspf, which is imported with the first evaluation or by `load`. It does no I/O here:
`query` answers its look-ups from what is known, and the evaluation is repeated when what it asked
for has arrived. See docs/decisions/spf.md.

Invariants
----------
*Seven results*: an evaluation returns one of the results of RFC 7208 section 2.6, whatever the
records and the client's texts are.
*In steps*: an evaluation that takes long is interrupted; the engine then asks nothing, and goes on
when it is resumed.
*Bounded*: records beyond the limits of `query` are a permerror, so that no record costs more
than some milliseconds; the numbers of look-ups are those of RFC 7208 section 4.6.4.
*Silent*: nothing is printed; pyspf would print to smtpd with `verbose`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.addresses import canonical

if TYPE_CHECKING:
    from typing import Any

    from smtpd_filters.authentication.inquiry import Engine, Known, Question
    from smtpd_filters.lookups.outcome import Outcome

    from .memo import Memo
    from .trace import Trace

# The longest chain of dependent look-ups within the limits of RFC 7208: the record itself and ten
# terms, each with two steps (MX and its addresses, PTR and its addresses), and an explanation; and
# the runs that are interrupted, each after more than `query.STEP` terms.
MAX_RUNS = 32 + 16
NONE, PERMERROR = "none", "permerror"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of an evaluation.

    `result` is a word of RFC 7208 section 2.6: none, neutral, pass, fail, softfail, temperror or
    permerror. `domain` is the domain that was checked. `mechanism` is the term of its record that
    matched, `problem` the reason of an error; both are for the log and may hold the domain owner's
    text, as may `explanation`, the owner's text for a `fail`, in printable ASCII. `trace` is the
    course of the evaluation, if it was asked for. `broad` is whether a `pass` says little about the
    client, since the term that matched, perhaps of an included record, would match most others.
    """

    result: str
    domain: str
    mechanism: str = ""
    problem: str = ""
    explanation: str = ""
    trace: Trace | None = field(default=None, compare=False, repr=False)
    broad: bool = False


def load() -> None:
    """Import pyspf now, rather than with the first evaluation: it takes a tenth of a second."""
    from . import memo, query  # noqa: F401  # for the import


def check(  # noqa: PLR0913  # options, given by name
    client: str,
    helo: str,
    sender: str,
    *,
    now: float,
    receiver: str = "unknown",
    explain: bool = False,
    cached: Known | None = None,
    memo: Memo | None = None,
) -> Engine[Verdict]:
    """Evaluate the MAIL FROM identity, or without a sender that of HELO: `postmaster@HELO`.

    `client` is the client's IP address, `helo` the name in its greeting, `sender` the envelope's
    sender, `receiver` our name for the macro `%{r}`, and `now` the time in seconds of the epoch for
    `%{t}`. With `explain` the verdict has its trace, and the owner's explanation of a `fail`, which
    is looked up. `cached` returns an outcome that is available at once (`Resolver.known`), which
    saves a run of the evaluation; `memo` keeps the verdicts then, by default that of the process.
    Raises ValueError for an invalid address of a client.
    """
    # The last `@`: a quoted local part may contain one.
    local, _, domain = (sender or f"postmaster@{helo}").rpartition("@")
    domain = canonical(domain)
    # RFC 7208 section 4.3: "malformed (e.g., label longer than 63 characters, ...) or is not a
    # multi-label domain name": none. An address literal has no record either.
    if "." not in domain or domain[0] == "[":
        return Verdict(NONE, domain, problem="not the name of a domain")
    from .memo import MEMO
    from .query import Evaluation, Work

    memo = MEMO if memo is None else memo
    key = client, domain, receiver
    if cached is not None and not explain and (verdict := memo.get(key, cached)):
        return verdict
    known: dict[Question, Outcome[Any]] = {}
    work = Work()
    for _ in range(MAX_RUNS):
        evaluation = Evaluation(
            (client, helo, local or "postmaster", domain, receiver, str(int(now))),
            known,
            work,
            cached,
            explain=explain,
        )
        verdict = evaluation.verdict()
        if not evaluation.wanted and not evaluation.interrupted:
            if cached is not None and not explain:
                memo.put(key, verdict, work.letters, evaluation.used)
            return verdict
        questions = list(evaluation.wanted)
        known.update(zip(questions, (yield questions), strict=True))
    return Verdict(PERMERROR, domain, problem="too many dependent look-ups")
