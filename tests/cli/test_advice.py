"""Warnings about listeners, orders and programs of a smtpd.conf that smtpd accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtpd_filters.cli.listing import discover
from smtpd_filters.cli.smtpd_conf import about_program, behind_signers, crowded, read, unasked
from smtpd_filters.cli.smtpd_conf.marks import phases_ended

LISTEN = "listen on socket filter {}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "smtpd.conf"


def warnings(path: Path, text: str) -> list[str]:
    path.write_text(text)
    found = read(str(path))
    assert found.errors == []
    return [str(problem).removeprefix(f"{path}:") for problem in found.problems]


def declared(**commands: str) -> str:
    return "".join(f'filter {name} proc-exec "{text}"\n' for name, text in commands.items())


def test_a_listener_without_filters(path: Path) -> None:
    text = declared(f="x") + LISTEN.format("f") + "listen on 127.0.0.1 port 587\n"
    [warning] = warnings(path, text)
    assert warning == "3: warning: listen on 127.0.0.1: no filter: what arrives here passes none"


@pytest.mark.parametrize("first", ["filter-dkimsign -d x", "filter-supervise filter-dkimsign"])
@pytest.mark.parametrize("second", ["filter-rewrite", "/usr/bin/filter-content --rules x"])
def test_a_filter_that_changes_messages_behind_the_signer(
    path: Path, first: str, second: str
) -> None:
    text = declared(sign=first, edit=second)
    [warning] = warnings(path, text + LISTEN.format("{ sign, edit }"))
    assert warning.startswith('3: warning: listen on socket: filter "edit", behind "sign", changes')
    assert warnings(path, text + LISTEN.format("{ edit, sign }")) == []
    chain = "filter c chain { sign, edit }\n"
    assert len(warnings(path, text + chain + LISTEN.format("c"))) == 1


def test_an_order_is_told_once(path: Path) -> None:
    text = (
        declared(sign="filter-dkimsign", edit="filter-rewrite") + "filter c chain { sign edit }\n"
    )
    assert len(warnings(path, text + LISTEN.format("c") + "listen on lo filter c\n")) == 1


@pytest.mark.parametrize(
    ("condition", "warned"),
    [
        ('src { "0.0.0.0/0", "::/0" }', True),
        ('rdns regex { "x", ".*" }', True),
        ('src regex "."', True),
        ('src "0.0.0.0/0"', False),
        ('!src { "0.0.0.0/0", "::/0" }', False),
        ('rdns regex "example"', False),
        ("rdns", False),
        ("!fcrdns", False),
    ],
)
def test_a_filter_behind_one_that_refuses_everybody(
    condition: str, path: Path, *, warned: bool
) -> None:
    refuses = f'filter a phase connect match {condition} disconnect "550 no"\n'
    text = refuses + declared(b="x") + "filter c phase helo match rdns junk\n"
    text += LISTEN.format("{ a, b, c }")
    told = '4: warning: listen on socket: filter "b", behind "a", is not asked at connect: "a" '
    assert warnings(path, text) == ([f"{told}refuses everybody there"] if warned else [])


@pytest.mark.parametrize("action", ["junk", "bypass"])
def test_a_filter_of_smtpd_that_ends_the_phase(path: Path, action: str) -> None:
    text = f"filter a phase connect match !rdns {action}\nfilter b phase {{}} match rdns junk\n"
    used = LISTEN.format("{ a, b }")
    [warning] = warnings(path, text.format("connect") + used)
    assert warning.endswith(
        f'"b" is not asked about what "a" matches: smtpd ends the phase connect at `{action}`'
    )
    assert warnings(path, text.format("helo") + used) == []


def test_several_programs_that_read_messages(path: Path) -> None:
    path.write_text(declared(a="x", b="y", c="z") + LISTEN.format("{ a, b, c }"))
    found = read(str(path))
    lines, others = frozenset({"data-line", "commit"}), frozenset({"connect"})
    registered = {("filter", "a"): lines, ("filter", "b"): others, ("filter", "c"): lines}
    [problem] = crowded(found, registered)
    assert str(problem).startswith(f'{path}:4: warning: listen on socket: "a" and "c" each read')
    assert list(crowded(found, {("filter", "a"): lines})) == []


def test_a_program_that_edits_what_is_signed_is_warned_of_once(path: Path) -> None:
    programs = declared(a="filter-dkimsign", b="filter-content", c="/own.py")
    path.write_text(programs + LISTEN.format("{ a, b, c }"))
    found = read(str(path))
    traits = {("filter", each): frozenset({"edits_signed"}) for each in "bc"}
    traits["filter", "a"] = frozenset({"signs"})
    [problem] = behind_signers(found, traits)
    assert 'filter "c", behind "a", edits what' in str(problem)


def unable(path: Path, text: str, **phases: str) -> list[str]:
    """Return the warnings of programs that can't refuse; `phases` are those of each, by name."""
    path.write_text(text)
    registered = {("filter", name): frozenset(of.split()) for name, of in phases.items()}
    return [str(problem) for problem in unasked(read(str(path)), registered)]


@pytest.mark.parametrize(
    ("marks", "refuses", "phase"),
    [
        ("filter-fcrdns", "filter-dnsbl --client x.example", "connect"),
        ("filter-supervise -- /usr/bin/filter-dyndns --action=junk", "filter-limit", "connect"),
        ("filter-senderscore -junkBelow 70", "filter-fcrdns --action reject", "connect"),
        ("filter-dnsbl -m x.example", "filter-senderscore -blockBelow 10", "connect"),
        ("filter-dnsbl --junk-at 1 --reject-at 2 x.example", "filter-chain", "connect"),
        ("filter-rcpt --traps /t --supervised", "filter-greylist", "rcpt-to"),
        ("filter-helo --own junk", "filter-greylist", "data"),
        ("filter-limit --limit 'user messages 9/1d action=junk'", "filter-milter", "data"),
        ("filter-mailfrom --action junk", "filter-dnsbl --reject-at 2 --junk-at 1", "data"),
    ],
)
def test_a_program_that_marks_ahead_of_one_that_refuses(
    path: Path, marks: str, refuses: str, phase: str
) -> None:
    text = declared(a=marks, b=refuses)
    asked = {"a": f"{phase} mail-from", "b": f"{phase} mail-from"}
    [warning] = unable(
        path, text + LISTEN.format("{ a, b }") + "listen on lo filter { a, b }\n", **asked
    )
    assert warning.startswith(
        f'{path}:3: warning: listen on socket: filter "b", behind "a", is not'
    )
    assert f"asked at {phase} about what" in warning
    assert unable(path, text + LISTEN.format("{ b, a }"), **asked) == []
    assert unable(path, text + LISTEN.format("{ a, b }"), a=phase, b="mail-from quit") == []


@pytest.mark.parametrize(
    ("ahead", "behind"),
    [
        ("filter-fcrdns", "filter-dyndns --action junk"),
        ("filter-fcrdns", "filter-senderscore -junkBelow 70"),
        ("filter-fcrdns", "filter-dnsbl -m x.example"),
        ("filter-fcrdns", "filter-trace"),
        ("filter-fcrdns --action reject", "filter-limit"),
        ("filter-fcrdns --dry-run", "filter-limit"),
        ("filter-rcpt --traps /t --trapped reject", "filter-limit"),
        ("filter-rcpt --on-error junk", "filter-limit"),
        ("filter-rspamd --on-error junk", "filter-limit"),
        ("filter-fcrdns 'x", "filter-limit"),
    ],
)
def test_an_order_in_which_nothing_is_missed(path: Path, ahead: str, behind: str) -> None:
    text = declared(a=ahead, b=behind) + LISTEN.format("{ a, b }")
    assert unable(path, text, a="connect rcpt-to", b="connect rcpt-to") == []


def test_programs_that_mark_without_a_flag_are_those_with_this_default() -> None:
    found, _ = discover()
    named = {
        cls.name: "action" in cls.Options.options and cls.Options.options["action"].default
        for cls in found
    }
    assert {name for name in named if phases_ended(f"filter-{name}", {"connect"})} == {
        name for name, default in named.items() if default == "junk"
    }


def test_a_filter_of_smtpd_that_marks_ahead_of_a_program(path: Path) -> None:
    text = "filter a phase connect match !rdns {}\n" + declared(b="filter-limit")
    used = LISTEN.format("{ a, b }")
    [warning] = unable(path, text.format("junk") + used, b="connect")
    assert 'filter "b", behind "a", is not asked at connect' in warning
    assert unable(path, text.format("junk") + used, b="mail-from") == []
    assert unable(path, text.format("bypass") + used, b="connect") == []


def test_a_program_of_others(path: Path) -> None:
    path.write_text(declared(a="/opt/filter-rspamd -v", b="x") + LISTEN.format("{ a, b }"))
    known, unknown = read(str(path)).programs
    [problem] = about_program(known, foreign=True)
    assert problem.warning
    assert problem.text.endswith("by filter-supervise, or use this package's filter-rspamd")
    [problem] = about_program(unknown, foreign=True)
    assert problem.text.endswith("smtpd ends if this program does; run it by filter-supervise")
    assert list(about_program(known, foreign=False)) == []


def test_a_filter_that_replaces_addresses_ahead_of_one_that_checks_them(path: Path) -> None:
    text = declared(edit="filter-rewrite --tags strip", check="filter-mailfrom --domains x.example")
    [warning] = warnings(path, text + LISTEN.format("{ edit, check }"))
    assert '"check", behind "edit", is not asked about addresses that are replaced' in warning
    assert warnings(path, text + LISTEN.format("{ check, edit }")) == []


TLS_FILTER = 'filter "tls" proc-exec "filter-tls --require \'{}\'"\n'


@pytest.mark.parametrize("words", ["tls pki x", "tls-require pki x", "smtps pki x"])
def test_tls_that_a_listener_offers(path: Path, words: str) -> None:
    text = 'pki x cert "/c"\n' + TLS_FILTER.format("1.2 sender=@x.example")
    text += LISTEN.format('"tls"') + 'listen on 127.0.0.1 {} filter "tls"\n'
    assert warnings(path, text.format(words)) == []
    [warning] = warnings(path, text.format("port 25"))
    assert "requires TLS (1.2 sender=@x.example), which no client can start here" in warning


def test_certificates_that_no_listener_asks_for(path: Path) -> None:
    text = 'pki x cert "/c"\n' + TLS_FILTER.format("any certificate")
    text += LISTEN.format('"tls"') + 'listen on 127.0.0.1 tls pki x filter "tls"\n'
    [warning] = warnings(path, text)
    assert "requires certificates" in warning
    text += 'listen on 127.0.0.1 port 2525 tls-require verify pki x filter "tls"\n'
    assert warnings(path, text) == []


@pytest.mark.parametrize("flag", ["--journal /run/j", "--journal=/run/j"])
def test_a_journal_outside_of_the_chroot(path: Path, flag: str) -> None:
    text = f'filter a proc-exec "filter-fcrdns {flag}"' + "{}\n" + LISTEN.format("a")
    [warning] = warnings(path, text.format(' chroot "/var/empty"'))
    assert warning.startswith(
        '1: warning: filter "a": --journal is a path in the chroot /var/empty'
    )
    assert warnings(path, text.format("")) == []


@pytest.mark.parametrize(
    ("first", "second", "warned"),
    [
        ("filter-fcrdns --journal /s --require rdns", "/usr/bin/filter-fcrdns --journal=/s", True),
        ("filter-fcrdns --journal /s", "filter-supervise --journal /s -- filter-fcrdns", True),
        (
            "filter-helo --filter-name=x --journal /s",
            "filter-rcpt --journal /s --filter-name x",
            True,
        ),
        ("filter-fcrdns --journal /s --filter-name one", "filter-fcrdns --journal /s", False),
        ("filter-fcrdns", "filter-fcrdns --journal /s", False),
        ("filter-fcrdns --journal /s", "filter-helo --journal /s", False),
        ("filter-chain --journal /s --chain a", "filter-chain --journal /s --chain b", False),
    ],
)
def test_filters_of_one_name_in_the_journal(
    path: Path, first: str, second: str, *, warned: bool
) -> None:
    text = declared(one=first, two=second) + LISTEN.format("{ one, two }")
    found = [each for each in warnings(path, text) if "--filter-name" in each]
    name = '"x"' if "helo --filter" in first else '"fcrdns"'
    line = f'2: warning: filter "two": has the name {name} in the journal, as "one" has; '
    assert found == ([f"{line}distinguish it with --filter-name two"] if warned else [])
