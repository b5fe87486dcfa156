"""Tables of domains and addresses, compared with smtpd 6.8.0p2 and a plain restatement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.addresses import canonical
from smtpd_filters.addresses.mailbox import Address
from smtpd_filters.errors import ConfigError
from smtpd_filters.tables import AddressTable, DomainTable, HostTable
from smtpd_filters.tables.domains import _keys

# Each was put to an smtpd whose only rule was `match for domain { ENTRY }`.
OBSERVED_DOMAINS = [
    ("*.c1.example", "a.c1.example", True),
    ("*.c1.example", "b.a.c1.example", False),
    ("*.c1.example", "c1.example", False),
    ("*c2.example", "xc2.example", True),
    ("*c2.example", "ca.c2.example", False),
    ("*c2.example", "ac2.example", True),
    ("*c2.example", "c2.example", True),
    ("mail*.c3.example", "mail.c3.example", True),
    ("mail*.c3.example", "mail2.c3.example", True),
    ("mail*.c3.example", "mail.a.c3.example", False),
    ("x.*.c4.example", "x.y.c4.example", True),
    ("x.*.c4.example", "x.y.z.c4.example", False),
    ("mail.c5*", "mail.c5", False),
    ("mail.c5*", "mail.c5.example", True),
    ("**.c6.example", "a.c6.example", True),
    ("A*.C7.example", "abc.c7.example", True),
    ("*1*2.c8.example", "12.c8.example", True),
    ("*1*2.c8.example", "112.c8.example", True),
    ("*1*2.c8.example", "a12.c8.example", True),
]
# Likewise with `match mail-from { ENTRY }`.
OBSERVED_ADDRESSES = [
    ("user@*.m1.example", "user@a.m1.example", True),
    ("user@*.m1.example", "user@a.b.m1.example", False),
    ("u2@m2.example", "u2@m2.example", True),
    ("u2@m2.example", "U2+t@m2.example", True),
    ("u3+tag@m3.example", "u3@m3.example", False),
    ("u3+tag@m3.example", "u3+tag@m3.example", True),
    ("u3+tag@m3.example", "u3+x@m3.example", False),
    ("@m4.example", "z@m4.example", True),
    ("@m4.example", "z@x.m4.example", False),
    ("u5@", "u5@any.example", True),
    ("u6", "u6@any.example", True),
    ("u6", "u6+t@any.example", True),
    ("u6", "", False),
]


@pytest.mark.parametrize(("entry", "key", "covered"), OBSERVED_DOMAINS)
def test_domains_as_smtpd(entry: str, key: str, covered: bool) -> None:  # noqa: FBT001  # a table of cases
    assert DomainTable.of([entry]).match(key) == (entry if covered else None)


@pytest.mark.parametrize(("entry", "key", "covered"), OBSERVED_ADDRESSES)
def test_addresses_as_smtpd(entry: str, key: str, covered: bool) -> None:  # noqa: FBT001  # a table of cases
    assert AddressTable.of([entry]).match(key) == (entry if covered else None)


@pytest.mark.parametrize(
    ("entry", "key", "covered"),
    [
        ("example.org", "EXAMPLE.org", True),
        ("Example.ORG", "example.org", True),
        ("example.org", "example.org.", True),
        ("example.org.", "example.org", True),
        ("@example.org", "example.org", True),
        ("@*.example.org", "a.example.org", True),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("XN--BCHER-KVA.example", "BÜCHER.EXAMPLE", True),
        ("bu\u0308cher.example", "bücher.example.", True),
        ("*.bücher.example", "a.XN--bcher-kva.example", True),
        ("*.xn--bcher-kva.example", "ä.bücher\uff0eexample", True),
        ("faß.example", "xn--fa-hia.example", True),
        ("faß.example", "fass.example", False),
        ("fass.example", "faß.example", False),
        ("[192.0.2.1]", "[192.0.2.1]", True),
        ("[IPv6:2001:DB8:0::1]", "[IPv6:2001:db8::1]", True),
        ("[192.0.2.1]", "[IPv6:192.0.2.1]", True),
        ("[192.0.2.1]", "[::ffff:192.0.2.1]", True),
        ("[192.0.2.1]", "[IPv6:::ffff:c000:201]", True),
        ("[192.0.2.1]", "[IPv6:::192.0.2.1]", False),
        ("[IPv6:::ffff:192.0.2.1]", "[192.0.2.1]", True),
        ("[2001:db8::1]", "[IPv6:2001:db8::1]", True),
        ("localhost", "LOCALHOST", True),
        ("_dmarc.example.org", "_dmarc.example.org", True),
        ("example.org", "x" * 2000 + ".example.org", False),
        ("example.org", "ü" * 2000, False),
        ("*", "example.org", True),
        ("*", "", False),
        ("*.example.org", "", False),
        ("a*b", "a", False),
        ("a*b", "ab", True),
        ("a*b*", "axb", False),
        ("a*b*", "axbx", True),
        ("a**b", "axb", True),
        ("a*b", "b", False),
        ("a*b", "axbx", False),
        ("a*bc", "axbxbc", False),
        ("a*b", "axx", False),
    ],
)
def test_domains(entry: str, key: str, covered: bool) -> None:  # noqa: FBT001  # a table of cases
    assert DomainTable.of([entry]).match(key) == (entry if covered else None)


@pytest.mark.parametrize(
    ("entry", "key", "covered"),
    [
        ("@", "", True),
        ("@", "a@b", True),
        ("*", "", True),
        ("*", "a@b", True),
        ("@*", "a@b", True),
        ("@*", "", False),
        ("@example.org", "example.org", False),
        ("@example.org", "@example.org", True),
        ("user", "user", True),
        ("user", "+user@example.org", False),
        ('"a@b"@example.org', '"A@B"@Example.Org', True),
        ('"user"@example.org', "user@example.org", True),
        ("user@example.org", '"us\\er"@example.org', True),
        ('"a b"@', '"a b"@example.org', True),
        ('"a b"', '"a b"@example.org', True),
        ("jane.doe@", "Jane.Doe+x@example.org", True),
        ("*@example.org", "anybody@example.org", True),
        ("*@example.org", "", False),
        ("@bücher.example", "a@XN--BCHER-KVA.EXAMPLE", True),
        ("jörg@example.org", "JO\u0308RG@example.org", True),
        ("@example.org", "a@example.org.", True),
        ("@[IPv6:2001:db8::1]", "a@[ipv6:2001:DB8::0:1]", True),
        ("@[192.0.2.1]", "a@[IPv6:::ffff:192.0.2.1]", True),
        ("a@example.org", "b@example.org", False),
    ],
)
def test_addresses(entry: str, key: str, covered: bool) -> None:  # noqa: FBT001  # a table of cases
    assert AddressTable.of([entry]).match(key) == (entry if covered else None)


def test_exact_entries_first() -> None:
    domains = DomainTable("{ *, *.example.org, mail*.example.org, mail.example.org }")
    assert domains.match("mail.example.org") == "mail.example.org"
    assert domains.match("mailx.example.org") in {"*", "*.example.org", "mail*.example.org"}
    assert len(domains) == 4
    addresses = AddressTable("{ @, user, @*.b, user@*.b, @a.b, user@a.b, user+x@a.b, user@a.b }")
    assert len(addresses) == 7
    assert addresses.match("user+x@a.b") == "user+x@a.b"
    assert addresses.match("user+y@a.b") == "user@a.b"
    assert addresses.match("other@a.b") == "@a.b"
    assert addresses.match("user@c.b") == "user@*.b"
    assert addresses.match("other@c.b") == "@*.b"
    assert addresses.match("user@elsewhere") == "user"
    assert addresses.match("other@elsewhere") == "@"


DOMAINS = "expected example.org or *.example.org"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("a b", "white space in a name"),
        ("\t", "white space in a name"),
        ("a\nb", "white space in a name"),
        ("@", "empty name"),
        ("@@example.org", "an address, not a domain"),
        ("user@example.org", "an address, not a domain"),
        ("http://example.org/", f"':' can't be in a domain ({DOMAINS})"),
        ("example.org/", f"'/' can't be in a domain ({DOMAINS})"),
        ("example.org:25", f"':' can't be in a domain ({DOMAINS})"),
        ("10.0.0.0/8", f"'/' can't be in a domain ({DOMAINS})"),
        ("192.0.2.1", "an address, not a domain (an address literal has brackets, [192.0.2.1])"),
        ("2001:db8::1", f"':' can't be in a domain ({DOMAINS})"),
        ("[192.0.2.1", "expected an address literal, [192.0.2.1] or [IPv6:2001:db8::1]"),
        ("[192.0.2.256]", "expected an address literal, [192.0.2.1] or [IPv6:2001:db8::1]"),
        ("[IPv6:1:2]", "expected an address literal, [192.0.2.1] or [IPv6:2001:db8::1]"),
        ("[example.org]", "expected an address literal, [192.0.2.1] or [IPv6:2001:db8::1]"),
        (
            ".example.org",
            "a domain can't begin with a dot (*.example.org covers names with one label more)",
        ),
        ("example..org", "an empty label"),
        ("*..org", "an empty label"),
        ("x" * 64 + ".example", "a label longer than 63 characters"),
        ("*" + "x" * 64, "a label longer than 63 characters"),
        ("x." * 126 + "xx", "longer than 253 characters"),
        ("*." + "x." * 126 + "x", "longer than 253 characters"),
        ("ü" * 60 + ".example", "a label is too long, or has bytes that aren't UTF-8"),
        ("\udcff.example", "not UTF-8"),
        ("ü*.example", "a label can't have both a star and letters beyond ASCII"),
        ("example.org\x01", "'\\x01' can't be in a domain"),
        ("x" * 1024, "longer than 1023 bytes"),
    ],
)
def test_a_domain_that_can_never_match_is_rejected(entry: str, reason: str) -> None:
    for table in (DomainTable, HostTable):
        with pytest.raises(ConfigError) as caught:
            table.of(["example.org", entry], "/etc/mail/domains")
        error = str(caught.value)
        assert error.startswith(f"/etc/mail/domains table: entry 2: {reason}") or (
            table is HostTable and "expected a name, not an address" in error
        )
    with pytest.raises(ConfigError):
        AddressTable.of([f"user@{entry}"])


def test_a_table_of_hosts_has_no_address_literals() -> None:
    assert HostTable("{ @example.org, *.bücher.example }").match("A.bücher.example")
    with pytest.raises(ConfigError, match="expected a name, not an address"):
        HostTable("[192.0.2.1]")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("example.org", 'did you mean "@example.org"? (a user with a dot needs an "@" after it)'),
        ("jane.doe", 'did you mean "@jane.doe"?'),
        ("bücher.example", 'did you mean "@example.org"?'),
        ("example\uff0eorg", 'did you mean "@example.org"?'),
        ("10.0.0.0/8", 'did you mean "@10.0.0.0/8"?'),
        ("http://example.org/", "':' can't be in an address (user@example.org)"),
        ("mailto:user@example.org", "':' can't be in an address"),
        ("<user@example.org>", "'<' can't be in an address"),
        ("[192.0.2.1]", "'[' can't be in an address"),
        ("user@example.org@example.net", 'more than one "@" (quote a local part that has one)'),
        ("@@example.org", 'more than one "@"'),
        ("a b@example.org", "white space in an address"),
        ("\t", "white space in an address"),
        ("us*@example.org", "a star can't be part of a user name (quote a name that has one)"),
        ("user@http://example.org", "':' can't be in a domain"),
        ('"a b@example.org', "'\"' can't be in an address"),
        ("user\x7f@example.org", "'\\x7f' can't be in an address"),
    ],
)
def test_an_address_that_can_never_match_is_rejected(entry: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AddressTable.of([entry], "/etc/mail/ours")
    assert str(caught.value).startswith(f"/etc/mail/ours table: entry 1: {reason}")


def smtpd_covers(name: str, pattern: str) -> bool:
    """The rule: a star matches up to the first character that equals the one after it."""
    name, pattern = name.lower(), pattern.lower()
    while name and pattern:
        if pattern[0] == "*":
            pattern = pattern.lstrip("*")
            while name and name[0] != pattern[:1]:
                name = name[1:]
        elif name[0] != pattern[0]:
            return False
        else:
            name, pattern = name[1:], pattern[1:]
    return not name and not pattern


names = st.text("ab.B", max_size=8).filter(lambda name: not name.endswith("."))
labels = st.text("ab*A", min_size=1, max_size=3)
globs = st.lists(labels, min_size=1, max_size=4).map(".".join)


@given(st.text("aB.@/-_\u00fc\u00df\uff0e1[]:", min_size=1, max_size=12))
def test_an_entry_that_is_accepted_covers_itself(entry: str) -> None:
    try:
        table = DomainTable.of([entry])
    except ConfigError:
        return
    name = entry.removeprefix("@")
    assert table.match(name) == table.match(canonical(name)) == entry


@given(st.lists(globs, max_size=6), names)
def test_domains_same_as_a_scan(patterns: list[str], name: str) -> None:
    found = DomainTable.of(patterns).match(name)
    covering = [pattern for pattern in patterns if smtpd_covers(name, pattern)]
    assert (found in covering) if covering else found is None


users = st.text("ab+", max_size=3)


def smtpd_covers_address(key: str, entry: str) -> bool:
    if entry == "*":
        entry = "@"
    (user, _, domain), (wanted, at, pattern) = key.rpartition("@"), entry.rpartition("@")
    if not at:
        wanted, pattern = pattern, ""
    if not wanted and not pattern:
        return True
    if pattern and not smtpd_covers(domain, pattern):
        return False
    return not wanted or (user if "+" in wanted else user.partition("+")[0]) == wanted


@given(
    st.lists(
        st.one_of(
            st.builds("{}@{}".format, users, st.one_of(st.just(""), globs)),
            users.filter(bool),
            st.just("*"),
        ),
        max_size=6,
    ),
    users,
    names,
)
def test_addresses_same_as_a_scan(entries: list[str], user: str, domain: str) -> None:
    key = f"{user}@{domain}"
    found = AddressTable.of(entries).match(key)
    covering = [entry for entry in entries if smtpd_covers_address(key, entry)]
    assert (found in covering) if covering else found is None


def test_large_tables_are_indexed() -> None:
    table = DomainTable.of([f"*.n{n}.example" for n in range(50_000)])
    assert table.match("a.n49999.example") == "*.n49999.example"
    assert len(table._content._stops) == 1
    assert not table._content._with_inner_stars


def test_entries_for_a_user_with_stars() -> None:
    table = AddressTable("{ user@*.example.org, @*.x.example.org, user@a*b*c, @a*d*e }")
    assert table.match("user@a.example.org") == "user@*.example.org"
    assert table.match("other@a.example.org") is None
    assert table.match("other@a.x.example.org") == "@*.x.example.org"
    assert table.match("user+tag@axbxc") == "user@a*b*c"
    assert table.match("other@axbxc") is None
    assert table.match("other@axdxe") == "@a*d*e"
    assert table.find(Address.parse("user@a.example.org")) == "user@*.example.org"


@pytest.mark.parametrize(
    ("address", "keys"),
    [
        (Address("", ""), ()),
        (Address("Bob", ""), ("bob",)),
        (Address("bob+x", ""), ("bob+x", "bob")),
        (Address("bob", "Example.ORG"), ("bob@example.org", "@example.org")),
        (
            Address("bob+x", "example.org"),
            ("bob+x@example.org", "bob@example.org", "@example.org"),
        ),
    ],
)
def test_keys_that_a_remote_source_is_asked_for(address: Address, keys: tuple[str, ...]) -> None:
    assert _keys(address) == keys


@pytest.mark.parametrize(
    ("entry", "key", "covered"),
    [
        ("example.org", "example.org", True),
        ("example.org", "a.example.org", True),
        ("Example.ORG.", "A.B.example.org.", True),
        ("example.org", "notexample.org", False),
        ("a.example.org", "example.org", False),
        ("*.example.org", "example.org", False),
        ("*.example.org", "a.b.c.example.org", True),
        ("org", "example.org", True),
        ("xn--bcher-kva.example", "a.b\u00fccher.example", True),
        ("[192.0.2.1]", "[192.0.2.1]", True),
        ("example.org", "[192.0.2.1]", False),
        ("example.org", "", False),
        ("example.org", ".", False),
        ("example.org", "..example.org", True),
        ("example.org", "a." * 5000 + "example.org", True),
        ("example.org", "x" * 5000 + ".example.org", True),
        ("example.org", "\u0301" * 5000 + ".example.org", True),
    ],
)
def test_a_domain_and_its_subdomains(entry: str, key: str, covered: bool) -> None:  # noqa: FBT001  # a table of cases
    for cls in (DomainTable, *([] if "[" in entry else [HostTable])):
        assert cls.of([entry]).match_subdomain(key) == (entry if covered else None)


def test_the_nearest_entry_is_preferred() -> None:
    table = DomainTable.of(["example.org", "a.example.org", "*.a.example.org"])
    assert table.match_subdomain("x.y.a.example.org") == "*.a.example.org"
    assert table.match_subdomain("a.example.org") == "a.example.org"
    assert table.match_subdomain("b.example.org") == "example.org"


def test_a_domain_of_many_labels_takes_few_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(DomainTable.contents, "find", lambda _, key: asked.append(key))
    assert DomainTable.of(["example.org"]).match_subdomain("a." * 10_000 + "example.org") is None
    assert len(asked) < 130
