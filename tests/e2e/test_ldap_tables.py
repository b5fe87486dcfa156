"""Tables in a real slapd, alone and behind a real smtpd."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from smtpd_filters.cli import main
from smtpd_filters.errors import UnavailableError
from smtpd_filters.filters.rcpt import Rcpt
from smtpd_filters.tables import AddressTable, DomainTable, MappingTable, NetworkTable
from smtpd_filters.tables.remote.ldap_client.filters import escape
from smtpd_filters.testing import Conversation
from tests.e2e.slapd import ADMIN, BASE, PASSWORD, SLAPD, Slapd, certificate, person
from tests.effort import brief
from tests.needed import need
from tests.stores.redis_server import free_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from typing import Any

    from smtpd_filters.tables import Table

pytestmark = pytest.mark.e2e
MANY = 1200
PEOPLE = "".join(
    (
        person("alice", ["alice@example.org", "sales@example.org"]),
        person("twin1", ["twin@example.org"]),
        person("twin2", ["twin@example.org"], "2001:db8::/32"),
        *(person(f"u{number}", [f"u{number}@example.net"]) for number in range(MANY)),
    )
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    need("no slapd" if SLAPD is None else None)
    path = Path(tempfile.mkdtemp(prefix="ldap"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def slapd(folder: Path) -> Iterator[Slapd]:
    with Slapd(folder, PEOPLE, certificate=certificate(folder)) as running:
        yield running


def file_of(folder: Path, *lines: str, mode: int = 0o640) -> str:
    """The specification of a table with a new configuration file."""
    path = folder / f"table{len(list(folder.iterdir()))}.conf"
    path.write_text("\n".join((f"basedn {BASE}", "filter (mail=%u)", "timeout 20s", *lines)))
    path.chmod(mode)
    return f"ldap:{path}"


def run(work: Coroutine[Any, Any, None], *tables: Table) -> None:
    async def main() -> None:
        try:
            await work
        finally:
            for table in tables:
                assert table.remote is not None
                await table.remote.aclose()

    asyncio.run(main())


@contextmanager
def another(people: str = "") -> Iterator[Slapd]:
    """A server for a test that stops it."""
    path = Path(tempfile.mkdtemp(prefix="ldap"))
    try:
        with Slapd(path, people) as running:
            yield running
    finally:
        shutil.rmtree(path)


def test_addresses_are_found_as_ldapsearch_finds_them(slapd: Slapd, folder: Path) -> None:
    table = AddressTable.load_by_key(file_of(folder, f"url {slapd.url}"))

    async def main() -> None:
        for address in (
            "alice@example.org",
            "SALES@example.org",
            "bob@example.org",
            "u7@example.net",
        ):
            found = await table.look_up(address)
            assert (found is not None) == bool(slapd.search(f"(mail={address})"))
        assert await table.look_up("alice+tag@example.org") == "alice@example.org"

    run(main(), table)


@pytest.mark.parametrize("key", ["*", "*)(uid=*", "\\2a", "alice*", "a(b)c", "ü", "a\\", "("])
def test_no_key_is_a_filter(slapd: Slapd, folder: Path, key: str) -> None:
    table = MappingTable.load_by_key(
        file_of(folder, f"url {slapd.url}", "filter (uid=%u)", "mapping_filter (|(uid=%u)(sn=%u))",
                "attributes mail")
    )  # fmt: skip

    async def main() -> None:
        assert await table.look_up_value(key) is None
        assert slapd.search(f"(uid={escape(key)})") == []

    run(main(), table)


def test_values_and_ambiguous_keys(slapd: Slapd, folder: Path) -> None:
    lines = (f"url {slapd.url}", "mapping_filter (mail=%u)", "mapping_attributes uid")
    table = MappingTable.load_by_key(file_of(folder, *lines))
    several = MappingTable.load_by_key(file_of(folder, lines[0], "attributes mail"))

    async def main() -> None:
        assert await table.look_up_value("sales@example.org") == "alice"
        assert await table.look_up_value("nobody@example.org") is None
        with pytest.raises(UnavailableError, match="several entries for one key"):
            await table.look_up_value("twin@example.org")
        with pytest.raises(UnavailableError, match="several values for one key"):
            await several.look_up_value("alice@example.org")

    run(main(), table, several)


def test_lists_are_paged_beyond_the_size_limit(slapd: Slapd, folder: Path) -> None:
    lines = (f"url {slapd.url}", "page_size 100", "mailaddr_attributes mail")
    addresses = AddressTable.load(file_of(folder, *lines))
    assert len(addresses) == MANY + 3
    assert addresses.match(f"u{MANY - 1}@example.net")
    networks = NetworkTable.load(
        file_of(folder, lines[0], "list_filter (uid=twin2)", "list_attributes description")
    )
    assert networks.match("2001:db8::1") == "2001:db8::/32"
    pairs = MappingTable.load(
        file_of(folder, lines[0], "attributes uid", "list_attributes mail, uid")
    )
    assert pairs.get("SALES@example.org") == "alice"


def test_every_way_to_connect_and_identify(slapd: Slapd, folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    tls = f"ca_file {folder}/certificate.pem"
    tables = [
        AddressTable.load_by_key(file_of(folder, *lines))
        for lines in (
            (f"url 127.0.0.1:{slapd.port}",),
            (f"url {slapd.url}", f"username {ADMIN}", f"password {PASSWORD}"),
            (f"url {slapd.url}", f"username {ADMIN}", f"password_file {secret}"),
            (f"url {slapd.url}", "starttls yes", tls),
            (f"url ldaps://127.0.0.1:{slapd.tls_port}", tls, f"username {ADMIN}",
             f"password {PASSWORD}"),
            (f"url {slapd.ldapi}",),
            (f"url ldap://127.0.0.1:{free_port()}/ {slapd.url}",),
            (f"url ldap://127.0.0.1:{free_port()}", f"url {slapd.url}"),
        )
    ]  # fmt: skip

    async def main() -> None:
        for table in tables:
            assert await table.look_up("alice@example.org"), table
            assert await table.look_up("bob@example.org") is None

    run(main(), *tables)


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ((f"username {ADMIN}", "password wrong"), "bind: invalid credentials"),
        (("username nonsense", "password x"), "bind: invalid DN syntax"),
        (("starttls yes",), "TLS: "),
        (("basedn dc=example,dc=com",), "no such base: dc=example,dc=com"),
        (("filter (|(mail=%u)(objectClass=referral))", "scope base",
          f"basedn ou=elsewhere,{BASE}"), "referral, which is not followed"),
    ],
)  # fmt: skip
def test_refusals_are_failures(
    slapd: Slapd, folder: Path, lines: tuple[str, ...], cause: str
) -> None:
    path = folder / f"wrong{len(list(folder.iterdir()))}.conf"
    more = {"basedn": BASE, "filter": "(mail=%u)"}
    further = [f"{key} {more[key]}" for key in more if not any(key in line for line in lines)]
    path.write_text("\n".join((f"url {slapd.url}", "timeout 20s", *further, *lines)))
    path.chmod(0o640)
    table = AddressTable.load_by_key(f"ldap:{path}")

    async def main() -> None:
        with pytest.raises(UnavailableError) as raised:
            await table.look_up("alice@example.org")
        assert cause in str(raised.value)

    run(main(), table)


@pytest.mark.parametrize(
    ("lines", "unknown"),
    [
        (("filter (&(objectClass=inetOrgPerson)(mail=%u))", "list_attributes mail"), []),
        (("filter (|(MAIL;x-a=%u)(2.5.4.3=%u)(rfc822Mailbox=*))",), []),
        (
            ("filter (&(mial=%u)(!(objectKlass=x)))", "list_attributes mial;x"),
            ["mial", "objectKlass"],
        ),
    ],
)
def test_attributes_that_the_server_does_not_know(
    slapd: Slapd,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    lines: tuple[str, ...],
    unknown: list[str],
) -> None:
    path = folder / "schema.conf"
    path.write_text("\n".join((f"url {slapd.url}", f"basedn {BASE}", *lines)))
    status = main(["table", "check", f"ldap:{path}", "--kind", "addresses"])
    found = capsys.readouterr().out
    for name in unknown:
        assert f"the server's schema has no attribute '{name}'\n" in found
    assert found.count("no attribute") == len(unknown)
    assert status == (2 if unknown else 0)


@pytest.mark.parametrize("name", ["userid", "0.9.2342.19200300.100.1.1", "name", "*"])
def test_another_name_of_an_attribute_is_a_failure(
    slapd: Slapd, folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    lines = (f"url {slapd.url}", "filter (mail=%u)", f"attributes {name}")
    spec = file_of(folder, *lines, f"list_attributes mail, {name}")
    table = MappingTable.load_by_key(spec)

    async def look_up() -> None:
        assert await table.look_up_value("nobody@example.org") is None
        with pytest.raises(UnavailableError, match=r"the server returns '.*' in place of "):
            await table.look_up_value("alice@example.org")

    run(look_up(), table)
    assert main(["table", "list", spec, "--kind", "mapping"]) != 0
    said = capsys.readouterr()
    assert f"in place of '{name}'" in said.out + said.err


def test_an_entry_that_is_too_large_does_not_stop_other_look_ups(folder: Path) -> None:
    crowd = person("crowd", [f"member{number:05}@club.example.org" for number in range(50_000)])
    with another(person("alice", ["alice@example.org"]) + crowd) as slapd:
        path = folder / "large.conf"
        lines = (f"url {slapd.url}", f"basedn {BASE}", "filter (uid=%u)", "attributes mail")
        path.write_text("\n".join((*lines, "timeout 10s")))
        table = MappingTable.load_by_key(f"ldap:{path}")

        async def main() -> None:
            for _ in range(5):
                with pytest.raises(UnavailableError, match="a message of"):
                    await table.look_up_value("crowd")
            assert await table.look_up_value("alice") == "alice@example.org"

        run(main(), table)


def test_a_subordinate_referral_is_not_an_entry(slapd: Slapd, folder: Path) -> None:
    table = DomainTable.load_by_key(file_of(folder, f"url {slapd.url}", "domain_filter (ou=%u)"))

    async def main() -> None:
        assert await table.look_up("elsewhere") is None

    run(main(), table)


def test_a_server_that_stops_and_one_that_is_slow(folder: Path) -> None:
    with another(person("alice", ["alice@example.org"])) as slapd:
        table = AddressTable.load_by_key(
            file_of(
                folder,
                f"url {slapd.url}",
                f"timeout {brief(0.9) * 1000:.0f}ms",
                "cache 0",
                "cache_missing 0",
            )
        )

        async def asks(name: str = "alice") -> str:
            assert table.remote is not None
            assert table.remote.key_lookups is not None
            answer = await table.remote.key_lookups.ask(f"{name}@example.org")
            return answer.cause or ("found" if answer.value is not None else "absent")

        async def answers() -> None:
            for _ in range(200):
                if await asks() == "found":
                    return
                await asyncio.sleep(0.1)
            raise AssertionError("it does not answer again")

        async def main() -> None:
            assert await asks() == "found"
            slapd.pause()
            assert "no answer" in await asks()
            slapd.resume()
            await answers()
            await asyncio.to_thread(slapd.stop)
            assert "Connect" in await asks() or "refused" in await asks()
            await asyncio.to_thread(slapd.start)
            await answers()
            await asyncio.to_thread(slapd.change, person("carol", ["carol@example.org"]).replace(
                "objectClass: inetOrg", "changetype: add\nobjectClass: inetOrg"))  # fmt: skip
            assert await asks("carol") == "found"

        run(main(), table)


def test_the_loop_is_not_held_and_fifty_keys_share_a_connection(slapd: Slapd, folder: Path) -> None:
    table = AddressTable.load_by_key(file_of(folder, f"url {slapd.url}"))

    async def main() -> None:
        keys = [f"u{number}@example.net" for number in range(50)]
        assert await asyncio.gather(*map(table.look_up, keys)) == keys

    run(main(), table)


def test_a_filter_whose_directory_is_down_starts_and_recovers(folder: Path) -> None:
    with another(person("trap", ["trap@example.org"], "192.0.2.0/24")) as slapd:
        slapd.stop()
        spec = file_of(folder, f"url {slapd.url}", "cache_missing 0")
        nets = file_of(
            folder, f"url {slapd.url}", "list_filter (uid=*)",
            "list_attributes description",
        )  # fmt: skip
        flags = ("--traps", spec, "--trapped", "reject", "--on-error", "tempfail")
        with Conversation(Rcpt, *flags, "--exempt", nets) as smtpd:

            def says(address: str = "198.51.100.1") -> str:
                client = smtpd.connect(address=address)
                client.ehlo()
                client.mail_from("bob@example.net")
                return client.rcpt_to("trap@example.org").reply[:9]

            assert says() == "451 4.4.3"
            slapd.start()
            smtpd.refresh()
            assert says() == "550 5.7.1"
            assert says("192.0.2.1") == ""
            slapd.stop()
            assert 0 < sum("unavailable" in line and "ldap:" in line for line in smtpd.log) < 8
