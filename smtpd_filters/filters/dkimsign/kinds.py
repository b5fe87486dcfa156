"""Kinds of settings of filter-dkimsign: algorithms, forms, names of fields, clients.

The invariants are those of `smtpd_filters.settings.kind`.
"""

from __future__ import annotations

import re

from smtpd_filters.authentication.dkim.canonical import RELAXED, SIMPLE
from smtpd_filters.settings import Kind
from smtpd_filters.settings.kind import not_an_array

from .keys import domain_name, selector_name

_FORMS = (SIMPLE, RELAXED)
# A semicolon would end the list of the signature.
_FIELD = re.compile(r"[!-9<-~]+")
AUTHENTICATED, LOCAL = CLIENTS = ("authenticated", "local")


class _Algorithm(Kind[str]):
    metavar = "rsa-sha256|ed25519-sha256"
    literal = True
    noun = "rsa-sha256 or ed25519-sha256"

    def parse(self, text: str) -> str:
        if text.lower() == "rsa-sha1":
            raise ValueError(f"rsa-sha1 is obsolete (RFC 8301); expected {self.noun}")
        if text.lower() not in {"rsa-sha256", "ed25519-sha256"}:
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}")
        return text.lower()


class _Forms(Kind[tuple[str, str]]):
    metavar = "HEADER/BODY"
    noun = "simple or relaxed, for the header, and perhaps a slash and the same for the body"

    def parse(self, text: str) -> tuple[str, str]:
        header, slash, body = text.partition("/")
        forms = header, body if slash else SIMPLE
        if not {*forms} <= {*_FORMS}:
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}")
        return forms

    def show(self, value: tuple[str, str]) -> str:
        return "/".join(value)


class _Names(Kind[tuple[str, ...]]):
    metavar = "NAME:..."
    noun = "names of header fields, separated by colons"

    def parse(self, text: str) -> tuple[str, ...]:
        names = [name.strip().lower() for name in text.split(":")] if text else []
        if not all(map(_FIELD.fullmatch, names)):
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}")
        return tuple(dict.fromkeys(names))

    def show(self, value: tuple[str, ...]) -> str:
        return ":".join(value)


class _Domain(Kind[str]):
    metavar = "DOMAIN"
    noun = "a domain"

    def parse(self, text: str) -> str:
        return domain_name(text)


class _Selector(Kind[str]):
    metavar = "SELECTOR"
    noun = "a selector"

    def parse(self, text: str) -> str:
        return selector_name(text)


class _Times(Kind[int]):
    """A switch that may be given twice."""

    repeats = True
    noun = "0, 1 or 2"
    toml = (int, bool)

    def parse(self, text: str) -> int:
        times = {"true": 1, "false": 0}.get(text.lower(), text)
        if str(times) not in {"0", "1", "2"}:
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}")
        return int(times)

    def words(self, value: int) -> list[str]:
        return ["true"] * value


class _Clients(Kind[frozenset[str]]):
    metavar = "CLIENTS"
    repeats = True
    noun = "an array of strings"
    toml = (list,)

    def parse(self, text: str) -> frozenset[str]:
        words = frozenset(text.split(","))
        if not words <= {*CLIENTS}:
            raise ValueError(f"expected {' or '.join(CLIENTS)}, or both, not {text[:60]!r}")
        return words

    def show(self, value: frozenset[str]) -> str:
        return ",".join(sorted(value))

    def words(self, value: frozenset[str]) -> list[str]:
        return [self.show(value)] if value else []

    def from_toml(self, value: object) -> frozenset[str]:
        if not isinstance(value, list):
            raise not_an_array(self.noun, value)
        return frozenset().union(*(self.parse(str(each)) for each in value))

    def check(self, value: frozenset[str]) -> None:
        if not {*value} <= {*CLIENTS}:
            raise ValueError(f"expected a frozenset of {', '.join(CLIENTS)}")


ALGORITHM = _Algorithm()
FORMS = _Forms()
NAMES = _Names()
DOMAIN = _Domain()
SELECTOR = _Selector()
TIMES = _Times()
CLIENT_WORDS = _Clients()
