"""pyspf without I/O: its query, whose look-ups are answered from what is known.

Importing this module imports pyspf and parts of dnspython.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smtpd_filters.lookups.dns.names import Owner, canonical
from smtpd_filters.lookups.outcome import MX, Found, Unavailable

from . import PERMERROR, Verdict, macros
from .needed import needed
from .pyspf import spf
from .trace import Matched, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from smtpd_filters.authentication.inquiry import Known, Question
    from smtpd_filters.lookups.outcome import Outcome

    #: A term, its mechanism, its argument, the length of the prefix, and the result of a match.
    Term: TypeAlias = tuple[str, str, str, int, Matched]

# Records of several KiB are published; a term longer than these octets is not: a domain has at
# most 253. pyspf's own expressions take quadratic time.
MAX_RECORD = 8192
MAX_TERM = 512
MAX_TERMS = 256
#: Terms that are parsed in an evaluation, each taking some 10 us. Ten records of a provider have
#: less than 500. Macros of so many octets count as a term.
MAX_PARSED = 2048
#: Terms after which a run is interrupted at the next record, so that others have their turn: a
#: record has at most 256, and a step of an evaluation takes some milliseconds.
STEP = 128
_EXPANDED = 32
#: Characters of the reason of an error.
_MAX_PROBLEM = 200

# The macros whose value is found by look-ups, which count.
_BY_LOOKUP = re.compile("%{p", re.IGNORECASE)
_UNPRINTABLE = re.compile("[^ -~]")
#: Mechanisms with a network, and the macro `%{v}` of clients that may be in it.
_FAMILIES = {"ip4": "in-addr", "ip6": "ip6"}
#: The letters of the macros (RFC 7208 section 7.2), of which these are for explanations only.
_LETTERS, _FOR_EXPLANATIONS = frozenset("slodipvhcrt"), "crt"
#: The terms that look nothing up.
_WITHOUT_LOOK_UP = re.compile(r"[+?~-]?(?:all$|ip[46]:)", re.IGNORECASE)


#: The least lengths of prefixes of networks that one owner has: registries get a /8 or a /12.
_NARROW = {"in-addr": 8, "ip6": 12}
#: The macros of "exists" that stand for what a client can't choose.
_OF_CLIENT = re.compile("%{[ip]", re.IGNORECASE)

#: Stands for a name that cannot be one, in a term that matches nothing.
_NOWHERE = ".invalid"


class _PendingError(Exception):
    """An answer is not known yet."""


class _UnmatchableError(Exception):
    """A text that cannot be a name, with a local part beyond ASCII (RFC 8616 section 4)."""


class _Deferred(str):
    """The domain of an explanation that has not been looked up, and the current domain."""

    __slots__ = ("domain",)
    domain: str


class Work:
    """What the runs of one evaluation share: parsed terms, matched networks, and their number.

    `step` is the work of the current run. `letters` are the macros that were expanded. `records`
    are records by their domains, without the terms that further runs don't need: evaluations of
    many sessions may wait for a slow name server, and all terms of one would take a megabyte.
    """

    __slots__ = ("_parsed", "expansions", "letters", "matches", "records", "step", "terms")

    def __init__(self) -> None:
        self.letters: set[str] = set()
        self.records: dict[str, str] = {}
        self.terms: dict[tuple[str, str], Term] = {}
        self.expansions: dict[tuple[str, str], str] = {}
        self.matches: dict[tuple[tuple[str, ...], int], bool] = {}
        self.step = 0
        self._parsed = 0

    def charge(self, units: int) -> None:
        """Count a piece of work of so many terms; raise PermError beyond `MAX_PARSED`."""
        self.step += units
        self._parsed += units
        if self._parsed > MAX_PARSED:
            raise spf.PermError(f"more than {MAX_PARSED} terms")


class Evaluation(spf.query):  # type: ignore[misc]  # pyspf has no type information
    """One run of an evaluation.

    `subject` are the client's address, the name in its greeting, the local part and the domain of
    the sender, the receiver, and the time. `known` are the outcomes of this evaluation, to which
    those that `cached` returns are added. `wanted` are the questions that were not known in this
    run, and `interrupted` tells that it took too long: then its verdict is void. `used` are the
    outcomes on which it depends.
    """

    def __init__(
        self,
        subject: tuple[str, str, str, str, str, str],
        known: dict[Question, Outcome[Any]],
        work: Work,
        cached: Known | None = None,
        *,
        explain: bool = False,
    ) -> None:
        client, helo, local, domain, receiver, now = subject
        # "h" and "s" as the constructor likes them: it splits a sender at the first `@`.
        super().__init__(i=canonical(client), s="postmaster@localhost", h=helo, receiver=receiver)
        self.s, self.l, self.o, self.d = f"{local}@{domain}", local, domain, domain
        self.t = now
        self.wanted: dict[Question, None] = {}
        self.used: dict[Question, Outcome[Any]] = {}
        self.interrupted = False
        work.step = 0
        self._known = known
        self._cached = cached
        self._work = work
        self._voids: set[int] = set()
        self._depth = 0
        #: Whether the last term that matched, includes aside, would match most clients.
        self._broad = False
        #: The records of this run by their domains.
        self._read: dict[str, str] = {}
        self._trace = Trace() if explain else None

    def verdict(self) -> Verdict:
        """Run the evaluation; the verdict is void if questions are `wanted`."""
        verdict = self._evaluated()
        if self._trace is None:
            return verdict
        self._trace.lookups, self._trace.voids = self.lookups, len(self._voids)
        return replace(verdict, trace=self._trace)

    def _evaluated(self) -> Verdict:
        domain = self.o
        explain = self._trace is not None
        try:
            result, _, text = self.check()
            explanation = self._explanation(text) if explain and result == "fail" else ""
        except _PendingError:
            if self._trace is None:
                self._shorten()
            return Verdict(PERMERROR, domain)
        except MemoryError:
            raise
        except Exception as exc:  # noqa: BLE001  # some records raise IndexError, others ValueError
            problem = f"pyspf: {type(exc).__name__}: {exc}"[:_MAX_PROBLEM]
            return Verdict(PERMERROR, domain, problem=problem)
        problem = ""
        if result in {PERMERROR, "temperror"}:
            problem = text.partition(": ")[2][:_MAX_PROBLEM]
        broad = result == "pass" and self._broad
        return Verdict(str(result), domain, self.mechanism or "", problem, explanation, broad=broad)

    def _explanation(self, mark: object) -> str:
        """Return the explanation that a mark stands for; "" if there is none, or it is invalid.

        RFC 7208 section 6.2: "If there are any processing errors ... then proceed as if no "exp"
        modifier was given".
        """
        if not isinstance(mark, _Deferred):
            return ""
        self.d = mark.domain
        try:
            text = super().get_explanation(mark)
        except spf.TempError:
            return ""
        return _UNPRINTABLE.sub("?", text or "")[:MAX_TERM]

    # -- look-ups ------------------------------------------------------------------------

    def dns(
        self,
        name: str,
        qtype: str,
        cnames: object = None,  # noqa: ARG002  # the resolver follows aliases
        ignore_void: bool = False,  # noqa: FBT001, FBT002  # pyspf's parameter
    ) -> list[Any]:
        """Return the records that are known; raise _PendingError if the outcome is not known."""
        question = _question(name, qtype)
        if question is None:
            return []
        outcome = self._outcome(question)
        if outcome is None:
            self.wanted[question] = None
            raise _PendingError
        if self._work.step > STEP:
            # The outcome is kept, and so is what was parsed: the next run goes further.
            self.interrupted = True
            raise _PendingError
        self.used[question] = outcome
        if self._trace is not None:
            self._trace.answered(question, outcome)
        if isinstance(outcome, Unavailable):
            raise spf.TempError(f"DNS: {outcome.cause}")
        if isinstance(outcome, Found):
            if outcome.gap:
                raise spf.TempError(f"DNS: {outcome.gap}")
            return [_as_pyspf(record) for record in outcome.records]
        if not ignore_void:
            self._count_void()
        return []

    def _outcome(self, question: Question) -> Outcome[Any] | None:
        """Return an outcome that is known; the same one throughout an evaluation."""
        outcome = self._known.get(question)
        if outcome is None and self._cached is not None:
            outcome = self._cached(*question)
            if outcome is not None:
                self._known[question] = outcome
        return outcome

    def _count_void(self) -> None:
        """Count a look-up without records, once for each term.

        RFC 7208 section 4.6.4 limits the void look-ups of terms; an "mx" of three hosts without
        IPv6 addresses is one term.
        """
        self._voids.add(self.lookups)
        if len(self._voids) > spf.MAX_VOID_LOOKUPS:
            raise spf.PermError(f"more than {spf.MAX_VOID_LOOKUPS} void look-ups")

    def _want(self, names: Iterable[str], qtype: str) -> None:
        """Want what is not known of these, so that it is asked for side by side."""
        for name in names:
            question = _question(name, qtype)
            if question is not None and self._outcome(question) is None:
                self.wanted[question] = None

    def dns_mx(self, domainname: str) -> list[str]:
        """Return the addresses of a domain's exchangers."""
        exchangers = self.dns(domainname, "MX")
        if len(exchangers) <= spf.MAX_MX:
            self._want([name for _, name in exchangers], self.A)
        addresses: list[str] = super().dns_mx(domainname)
        return addresses

    def validated_ptrs(self) -> list[str]:
        """Return the names of the client that resolve to it.

        RFC 7208 section 5.5: if the look-up of PTR fails, the mechanism doesn't match; if that of
        an address fails, "that domain name is skipped".
        """
        try:
            names: list[str] = self.dns_ptr(self.i)[: spf.MAX_PTR]
        except spf.TempError:
            return []
        self._want(names, self.A)
        found = []
        for name in names:
            try:
                if self.cidrmatch(self.dns_a(name, self.A), self.cidrmax):
                    found.append(name)
            except spf.TempError:
                continue
        return found

    # -- records -------------------------------------------------------------------------

    def check0(self, spf: str, recursion: int) -> tuple[str, int, str]:
        """Evaluate a record; if an answer is missing, want those of the other terms as well."""
        step = self._trace and spf and self._trace.record(self.d, spf)
        self._depth += 1
        try:
            record = self._normalised(spf) if spf else spf
            result: tuple[str, int, str] = super().check0(record, recursion)
        except _PendingError:
            if self._depth == 1 and not self.interrupted:
                self._want_all(spf)
            raise
        except Exception as error:
            if self._trace and step:
                self._trace.failed(step, str(error))
            raise
        finally:
            self._depth -= 1
        if isinstance(result[0], Matched) and result[0].broad is not None:
            self._broad = result[0].broad
        if self._trace and step:
            self._trace.ended(step, result[0])
            return (str(result[0]), *result[1:])
        return result

    def _normalised(self, record: str) -> str:
        """Return a record without what pyspf would get wrong.

        Names of modifiers are case-insensitive, and RFC 7208 section 6 has: "Unrecognized modifiers
        MUST be ignored no matter where, or how often, they appear in a record." Their macros are
        checked. Raises PermError for a record that is too large.
        """
        if self.d in self._work.records:
            self._read[self.d] = self._work.records[self.d]
            return self._read[self.d]
        _check_size(record)
        terms: list[str] = []
        for term in record.split(" "):
            modifier = spf.RE_MODIFIER.match(term)
            if modifier is None or not terms:
                terms.append(term)
                continue
            name, value = modifier[1].lower(), term[modifier.end() :]
            if name in {"exp", "redirect"}:
                terms.append(f"{name}={value}")
            else:
                self._check_macros(value)
        self._read[self.d] = " ".join(terms)
        return self._read[self.d]

    def _shorten(self) -> None:
        """Keep for further runs what these need of the outcomes, and of the records of this run."""
        client = int(self.ipaddr)
        for question, outcome in self._known.items():
            self._known[question] = needed(question[1], outcome, client)
        work = self._work
        for domain, record in self._read.items():
            work.records[domain] = " ".join(self._needed(domain, record))
        work.expansions.clear()  # the terms have them

    def _needed(self, domain: str, record: str) -> list[str]:
        """Return the terms of a record without those that don't match and that can't be reached.

        Terms that have not been parsed are needed. Behind the terms that may look up, and one more,
        there is nothing but an error.
        """
        parsed = self._work.terms
        kept: list[str] = []
        left = spf.MAX_LOOKUP + 1
        others: set[str] = set()
        for text in record.split(" "):
            term = parsed.get((text, domain))
            if term is None or term[1] == "all":
                kept.append(text)
            elif left and self._may_match(term):
                kept.append(text)
                left -= 1
            else:
                others.add(text)
        for text in others.difference(kept):
            del parsed[text, domain]
        return kept

    def _may_match(self, term: Term) -> bool:
        """Return whether a term is not one of a network that the client isn't in."""
        _, mechanism, address, length, _ = term
        family = _FAMILIES.get(mechanism)
        if family is None:
            return True
        if family != self.v:
            return False
        try:
            found: bool = super().cidrmatch([address], length)
        except spf.PermError:
            return True  # the reason is found when the term is reached
        return found

    def _check_macros(self, text: str) -> None:
        """Raise PermError if the text of an unknown modifier has an invalid macro."""
        with suppress(_UnmatchableError):
            self.expand(text)

    def _want_all(self, record: str) -> None:
        """Want what the terms of the first record name, and those of the records they lead to."""
        with suppress(spf.PermError):
            self._look_ahead(record, spf.MAX_LOOKUP)

    def _look_ahead(self, record: str, left: int) -> int:
        """Want what the terms of a record name, in the order in which they are evaluated.

        `left` is how many terms may look up; what remains is returned. Raises PermError for a term
        that is invalid: no further one will be evaluated.
        """
        redirect = ""
        for term in filter(None, record.split(" ")[1:]):
            if _WITHOUT_LOOK_UP.match(term):
                continue
            if spf.RE_MODIFIER.match(term):
                name, _, value = term.partition("=")
                redirect = value if name.lower() == "redirect" else redirect
            elif left:
                left = self._want_term(term, left - 1)
        if redirect and left:
            with suppress(spf.TempError, _PendingError):
                return self._look_ahead_in(self.expand_domain(redirect), left - 1)
        return left

    def _look_ahead_in(self, domain: str, left: int) -> int:
        """Look ahead in the record of another domain, if it is known."""
        record = self.dns_spf(domain)
        if not record:
            return left
        before, self.d = self.d, domain
        try:
            _check_size(record)
            return self._look_ahead(record, left)
        finally:
            self.d = before

    def _want_term(self, term: str, left: int) -> int:
        with suppress(spf.TempError, _PendingError):
            _, mechanism, argument, _, _ = self.validate_mechanism(term)
            if mechanism == "include":
                return self._look_ahead_in(argument, left)
            if mechanism == "mx":
                self.dns_mx(argument)
            elif mechanism == "ptr":
                self.validated_ptrs()
            else:
                self._want([argument], "A" if mechanism == "exists" else self.A)
        return left

    def validate_mechanism(self, mech: str) -> Term:
        """Parse a term, once in all runs."""
        key = mech, self.d
        term = self._work.terms.get(key)
        if term is None:
            self._work.charge(1)
            text, mechanism, argument, length, result = super().validate_mechanism(mech)
            if argument == _NOWHERE:
                # A look-up that finds nothing; pyspf refuses a record without this include.
                mechanism, length, result = "exists", self.cidrmax, "neutral"
            broad = self._is_broad(text, mechanism, length)
            term = text, mechanism, argument, length, Matched(result, broad=broad)
            if not _BY_LOOKUP.search(mech):
                self._work.terms[key] = term
        return term if self._trace is None else self._trace.term(term, self.d)

    def _is_broad(self, text: str, mechanism: str, length: int) -> bool | None:
        """Return whether a term matches most clients; None if another record decides that."""
        match mechanism:
            case "include":
                return None
            case "exists":
                return not _OF_CLIENT.search(text)
            case "ip4" | "ip6" | "a" | "mx":
                return length < _NARROW[self.v]
        return mechanism == "all"

    def cidrmatch(self, ipaddrs: list[str], n: int) -> bool:
        """Return whether the client is in a network of one of these addresses."""
        if len(ipaddrs) == 1:
            # Mostly that of a network, a term which no further run has.
            return bool(super().cidrmatch(ipaddrs, n))
        key = tuple(ipaddrs), n
        found = self._work.matches.get(key)
        if found is None:
            found = self._work.matches[key] = super().cidrmatch(ipaddrs, n)
        return found

    # -- macros --------------------------------------------------------------------------

    def expand_domain(self, arg: str) -> str:
        """Validate and expand the domain of a term; `_NOWHERE` if it can't be a name."""
        if not macros.is_domain_spec(arg):
            raise spf.PermError("invalid domain", arg)
        try:
            return self.expand(arg)
        except _UnmatchableError:
            return _NOWHERE

    def expand(self, s: str, stripdot: bool = True) -> str:  # noqa: FBT001, FBT002  # pyspf's
        """Expand the macros of a domain, or with `stripdot` false of an explanation."""
        if len(s) > MAX_TERM:
            raise spf.PermError(f"text of more than {MAX_TERM} octets")

        if "%" not in s:
            return macros.truncated(s) if stripdot else s
        key = s, self.d
        known = self._work.expansions.get(key) if stripdot else None
        if known is not None:
            return known
        self._work.charge(1 + len(s) // _EXPANDED)

        def value_of(letter: str) -> str:
            return self._value(letter, in_name=stripdot)

        try:
            text = macros.expand(s, value_of)
        except macros.MacroError as exc:
            raise spf.PermError(str(exc), s) from None
        if not stripdot:
            return text
        text = macros.truncated(text)
        if not _BY_LOOKUP.search(s):
            self._work.expansions[key] = text
        return text

    def _value(self, letter: str, *, in_name: bool) -> str:
        """Return the value of a macro in a name or an explanation."""
        if letter not in _LETTERS or (in_name and letter in _FOR_EXPLANATIONS):
            raise macros.MacroError(f"unknown macro %{{{letter}}}")
        self._work.letters.add(letter)
        if letter == "p":
            self.getp()
        value: str = getattr(self, letter)
        if not value.isascii():
            if in_name and letter in "ls":
                raise _UnmatchableError
            value = value.encode("ascii", "replace").decode("ascii")
        return value

    def get_explanation(self, spec: str) -> str:
        """Return a mark: only the explanation of a `fail` is looked up, when that is known."""
        mark = _Deferred(spec)
        mark.domain = self.d
        return mark


def _question(name: str, qtype: str) -> Question | None:
    """Return the question about a name, or None if it can't be a name in the DNS."""
    name = str(name).removesuffix(".").lower()
    if not all(0 < len(label) < 64 for label in name.split(".")):
        return None
    question: Any = (Owner(name), qtype)
    return question  # type: ignore[no-any-return]  # the types of records in pyspf are ours


def _as_pyspf(record: object) -> object:
    """Return a record in pyspf's form."""
    if isinstance(record, MX):
        return record.preference, record.exchange
    return (record,) if isinstance(record, bytes) else record


def _check_size(record: str) -> None:
    """Raise PermError for a record whose evaluation would take too long."""
    if len(record) > MAX_RECORD:
        raise spf.PermError(f"record of more than {MAX_RECORD} octets")
    terms = record.split(" ")
    if len(terms) > MAX_TERMS:
        raise spf.PermError(f"record of more than {MAX_TERMS} terms")
    if any(len(term) > MAX_TERM for term in terms):
        raise spf.PermError(f"record with a term of more than {MAX_TERM} octets")
