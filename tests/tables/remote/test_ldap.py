from __future__ import annotations

import re
import stat
from pathlib import Path
from time import process_time

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.sandbox import Needs
from smtpd_filters.tables import AddressTable
from smtpd_filters.tables.remote.configuration import Configuration
from smtpd_filters.tables.remote.ldap import KEYS as LDAP_KEYS
from smtpd_filters.tables.remote.ldap import SERVICES as LDAP
from smtpd_filters.tables.remote.ldap import names_in
from smtpd_filters.tables.remote.sqlite import SERVICES as SQLITE

ROOT = Path(__file__).parents[3]
BASE = "dc=example,dc=org"


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (("username cn=a",), "a password or password_file is required"),
        (("password x",), "username is missing"),
        (("url http://x/",), "expected ldap://, ldaps:// or ldapi://"),
        (("filter (mail=%u",), "without its closing parenthesis"),
        (("filter (mail=%d)",), "%d in a filter"),
        (("scope all",), "expected sub, one or base"),
        (("starttls maybe",), "expected yes or no"),
        (("ca_file /x",), "requires ldaps:// or starttls yes"),
        (("starttls yes", "ca_file /missing"), "/missing: No such file"),
        (("page_size 0",), "expected a number from 1 to 10000"),
        (("bas dn",), "unknown key 'bas'"),
        (("timeout 5",) * 2 + ("refresh 0",), "refresh: must be at least 1s"),
    ],
)
def test_mistakes_are_found_at_start(tmp_path: Path, lines: tuple[str, ...], error: str) -> None:
    path = tmp_path / "ldap.conf"
    given = {line.partition(" ")[0] for line in lines}
    more = {"url": "ldap://127.0.0.1", "basedn": BASE, "filter": "(mail=%u)"}
    further = [f"{key} {value}" for key, value in more.items() if key not in given]
    path.write_text("\n".join((*further, *lines)))
    path.chmod(0o600)
    with pytest.raises(ConfigError) as raised:
        AddressTable.load_by_key(f"ldap:{path}")
    assert error in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("description", "names"),
    [
        ("( 2.5.4.3 NAME 'cn' SUP name )", ["cn"]),
        ("( 2.5.4.3 NAME ( 'cn' 'commonName' ) DESC 'a (short) NAME' SUP name )",
         ["cn", "commonName"]),
        ("( 2.5.4.3  NAME  (  'cn'  'commonName'  )  SUP  name  )", ["cn", "commonName"]),
        ("( 2.5.4.3 DESC 'without' SUP name )", []),
        ("( 2.5.4.3 NAME '' )", []),
        ("( 2.5.4.3 NAME ( 'cn'", []),
    ],
)  # fmt: skip
def test_names_of_an_attribute(description: str, names: list[str]) -> None:
    assert names_in(description) == names


def test_a_hostile_description_of_an_attribute_costs_little() -> None:
    begun = process_time()
    assert names_in(" NAME (" * 40_000) == []
    assert names_in(" NAME" + " " * 280_000) == []
    assert process_time() - begun < 1, "quadratic: 20 s"


def test_a_file_that_others_may_read_has_no_password(tmp_path: Path) -> None:
    path = tmp_path / "ldap.conf"
    path.write_text("url ldap://127.0.0.1\nbasedn x\nfilter (a=%u)\nusername a\npassword b\n")
    path.chmod(0o644)
    assert path.stat().st_mode & stat.S_IROTH
    with pytest.raises(ConfigError, match="others may read the password"):
        AddressTable.load_by_key(f"ldap:{path}")


@pytest.mark.parametrize("heading", ["LDAP", "SQLite", "Redis and Valkey"])
def test_the_samples_of_the_page_are_right(tmp_path: Path, heading: str) -> None:
    page = (ROOT / "docs" / "tables.md").read_text("utf-8")
    sample = page.partition(f"## {heading}\n")[2].split("```")[1].strip()
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    sample = re.sub(r"(password_file) .*", rf"\1 {secret}", sample)
    sample = re.sub(r"ca_file .*\n", "", sample)
    known = (*LDAP_KEYS, *(f"{each}_{what}" for each in LDAP for what in ("filter", "attributes")))
    known += ("dbpath", *(f"{kind}_{each}" for kind in ("query", "list") for each in SQLITE))
    file = tmp_path / "conf"
    file.write_text(sample)
    assert len(Configuration(str(file), (*known, "set")).values) == len(sample.splitlines())
    if heading == "LDAP":
        assert AddressTable.load_by_key(f"ldap:{file}").by_key


def test_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "ldap.conf"
    path.write_text("url ldap://192.0.2.1 ldapi://%2Frun%2Fldapi\nbasedn x\nfilter (a=%u)\n")
    table = AddressTable.load_by_key(f"ldap:{path}")
    assert table.remote is not None
    needs = Needs()
    table.remote.declare(needs)
    assert needs.tcp == [("192.0.2.1", 389)]
    assert needs.sockets == ["/run/ldapi"]
