from __future__ import annotations

import stat

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.sandbox import Needs
from smtpd_filters.tables import AddressTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

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
        AddressTable.load_asking(f"ldap:{path}")
    assert error in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_file_that_others_may_read_has_no_password(tmp_path: Path) -> None:
    path = tmp_path / "ldap.conf"
    path.write_text("url ldap://127.0.0.1\nbasedn x\nfilter (a=%u)\nusername a\npassword b\n")
    path.chmod(0o644)
    assert path.stat().st_mode & stat.S_IROTH
    with pytest.raises(ConfigError, match="others may read the password"):
        AddressTable.load_asking(f"ldap:{path}")


def test_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "ldap.conf"
    path.write_text("url ldap://192.0.2.1 ldapi://%2Frun%2Fldapi\nbasedn x\nfilter (a=%u)\n")
    table = AddressTable.load_asking(f"ldap:{path}")
    assert table.remote is not None
    needs = Needs()
    table.remote.declare(needs)
    assert needs.tcp == [("192.0.2.1", 389)]
    assert needs.sockets == ["/run/ldapi"]
