"""smtpd-filters.toml, and filter-chain, which is what it says."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.chain import Chain
from smtpd_filters.cli import chain as program
from smtpd_filters.cli import chain_check, chain_file, chain_use
from smtpd_filters.cli.chain_file import ChainFile
from smtpd_filters.cli.listing import discover
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.dyndns import Dyndns
from smtpd_filters.filters.fcrdns import Fcrdns
from smtpd_filters.main import set_up
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime.log import Log
from smtpd_filters.scoring.rules import FilterRules
from smtpd_filters.settings import policy_options
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable

#: The ends of errors about names that are like none.
TOP_KEYS = " (there is filter, chain, verbose, long-lines, journal, sandbox, sub-addr-delim)"
FILTERS = f" (there is {', '.join(cls.name for cls in discover()[0])})"
OWN_NAME = '; a name of your own requires use = "..."'
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "smtpd-filters.toml"
MANUAL = ROOT / "docs" / "man" / "smtpd-filters.toml.5"
#: Root's checks are made as smtpd's user, who doesn't see a test's files.
AS_MYSELF = ("--user", "root") if os.geteuid() == 0 else ()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
TWO = """\
[filter.nameless]
use = "fcrdns"
require = "rdns"
action = "reject"

[filter.fcrdns]
phase = "mail-from"

[chain.inbound]
filters = ["nameless", "fcrdns", "dyndns"]
"""
GREET = """\
from smtpd_filters import PROCEED, Filter, Proceed, Reject, Session, Settings, option
from smtpd_filters.settings import TEXT


class Greet(Filter):
    "Refuse who greets by a wrong name."

    class Options(Settings):
        name_ = option(TEXT, default="evil.example", help="The wrong name.")

    def ehlo(self, session: Session, identity: str) -> Proceed | Reject:
        if identity == self.settings.name_:
            return Reject("550 5.7.1 Not you").because(f"greets as {identity}")
        return PROCEED
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file that is safe to read, or one with another mode."""

    def write(content: str | bytes, name: str = "chains.toml", mode: int = 0o644) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    return write


def said(content: str, chain: str = "") -> str:
    """What is wrong with a file of this content, without its name."""
    with pytest.raises(ConfigError) as failure:
        serve(content, chain)
    text = str(failure.value)
    assert text.startswith("x.toml:")
    assert "\n" not in text
    return without_line(text).removeprefix("x.toml:").removeprefix(" ")


def without_line(text: str) -> str:
    """Return an error without the number of the line of a table's key."""
    return re.sub(r"(?<=\.toml:)\d+:(?= \[)", "", text)


def serve(content: str, chain: str = "") -> Conversation:
    """Converse with a chain of a file of this content."""
    file = ChainFile("x.toml", content)
    declared = file.declared(file.chain(chain))
    ready = [set_up(each.make(), Log(), each.policy) for each in declared]
    rules = file.rules(file.chain(chain), declared)
    return Conversation([filter_ for filter_, _, _ in ready], rules=rules)


def filter_chain(
    *words: str | Path, data: bytes = b"", where: Path = ROOT
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "smtpd_filters.cli.chain", *map(str, words)],
        input=data,
        capture_output=True,
        cwd=where,
        check=False,
        timeout=60,
    )


def check(path: Path, *words: str) -> tuple[int, list[str]]:
    """Exit status and lines of a check, which prints nothing to stdout."""
    done = filter_chain("-n", "-f", path, *AS_MYSELF, *words)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode().splitlines()


def is_well(path: Path) -> bool:
    """Whether a check finds nothing."""
    status, lines = check(path)
    return (status, len(lines)) == (0, 1) and lines[0].startswith(f"configuration OK: {path} (")


@pytest.mark.parametrize(
    ("order", "settings", "warned"),
    [
        (("scan", "auth"), "", "writes Authentication-Results that Rspamd could use"),
        (("auth", "scan"), "", ""),
        (("scan", "rewrite"), 'subject-prefix = "x"', "changes messages that Rspamd may"),
        (
            ("scan", "rewrite"),
            'where = "envelope"\nrecipient-canonical = "{ a@b.example = c@b.example }"',
            "",
        ),
        (("scan", "content"), "", ""),
    ],
)
def test_a_filter_that_should_be_ahead_of_rspamd(
    order: tuple[str, str], settings: str, warned: str, tmp_path: Path
) -> None:
    path = tmp_path / "chain.toml"
    named = f"[filter.rewrite]\n{settings}\n" if settings else ""
    path.write_text(f'[chain.x]\nfilters = {list(order)}\n[filter.scan]\nuse = "rspamd"\n{named}')
    status, lines = check(path)
    assert status == 0, lines
    *warnings, fine = lines
    assert fine.startswith("configuration OK: ")
    told = f'filter-chain: {path}: warning: [chain.x]: filter "{order[1]}", behind "scan", {warned}'
    assert [each[: len(told)] for each in warnings] == ([told] if warned else [])


# -- chains --------------------------------------------------------------------------------


def test_filters_of_a_chain_are_asked_in_order_under_their_own_names() -> None:
    with serve(TWO) as smtpd:
        assert [each.name for each in smtpd.filters] == ["nameless", "fcrdns", "dyndns"]
        nobody = smtpd.connect(rdns=None)
        assert nobody.greeting.verb == "disconnect"
        liar = smtpd.connect(rdns="mail.example.net", fcrdns="fail")
        assert liar.greeting.verb == "proceed"
        liar.ehlo()
        liar.mail_from("bob@example.net")
        liar.rcpt_to("anna@example.org")
        # What the second decided at MAIL is marked at DATA.
        assert liar.data().verb == "junk"
        dynamic = smtpd.connect(rdns="192-0-2-8.dyn.example", address="192.0.2.8")
        assert dynamic.greeting.verb == "junk"
        names = [line.split()[1:3] for line in smtpd.log]
        assert names == [["nameless", "connect"], ["fcrdns", "mail-from"], ["dyndns", "connect"]]


def test_the_executable_is_the_chain(write: Callable[..., Path]) -> None:
    smtpd = SmtpdConnection()
    handshake = smtpd.configure()
    done = filter_chain("--config", write(TWO), data=handshake)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(smtpd.receive(done.stdout))
    assert smtpd.ready
    assert smtpd.phases == {"connect", "mail-from", "data"}


def test_only_one_of_several_chains_is_served() -> None:
    content = f'{TWO}\n[chain.users]\nfilters = ["mailfrom"]\n[filter.mailfrom]\ndomains = "a.b"\n'
    with serve(content, "users") as smtpd:
        assert [each.name for each in smtpd.filters] == ["mailfrom"]
    assert said(content) == "--chain is required, there are several: inbound, users"
    assert said(content, "user") == 'no [chain.user], did you mean "users"?'
    assert said(content, "x\ny") == "no [chain.x\\ny] (there is inbound, users)"


def test_what_every_filter_has_is_each_filters_own() -> None:
    content = """
    [filter.a]
    use = "fcrdns"
    on-error = "tempfail"
    deadline = "7s"
    dry-run = true
    [filter.b]
    use = "fcrdns"
    [chain.x]
    filters = ["a", "b"]
    """
    with serve(content) as smtpd:
        first, second = smtpd.filters
        assert (first.on_error, first.deadline, first.dry_run) == ("tempfail", 7.0, True)
        assert (second.on_error, second.deadline, second.dry_run) == ("proceed", 30.0, False)
        client = smtpd.connect(rdns=None)
        assert client.greeting.verb == "junk"
        assert " a connect result=proceed would=junk " in smtpd.log[0]
        assert " b connect result=junk " in smtpd.log[1]


@pytest.mark.parametrize(
    ("content", "verbose", "long_lines"),
    [
        ('[chain.x]\nfilters = ["dyndns"]', False, "split"),
        ('verbose = true\n[chain.x]\nfilters = ["dyndns"]', True, "split"),
        ('verbose = true\n[chain.x]\nverbose = false\nfilters = ["dyndns"]', False, "split"),
        ('long-lines = "refuse"\n[chain.x]\nfilters = ["dyndns"]', False, "refuse"),
        ('[chain.x]\nlong-lines = "refuse"\nfilters = ["dyndns"]', False, "refuse"),
    ],
)
def test_what_a_process_has_once(content: str, long_lines: str, *, verbose: bool) -> None:
    process = ChainFile("x.toml", content).process("x")
    assert (process.verbose, process.long_lines) == (verbose, long_lines)


def test_verbose_is_a_flag_too(write: Callable[..., Path]) -> None:
    smtpd = SmtpdConnection()
    data = smtpd.configure()
    smtpd.phases.add("connect")
    smtpd.reports.add("link-connect")
    key, token = b"7641df9771b4ed00", b"1ef1c203cc576e5d"
    values = (b"mail.example.org", b"pass", b"192.0.2.1:33", b"192.0.2.2:25")
    data += smtpd.report("link-connect", key, *values, time=b"1.000001")
    data += smtpd.request("connect", key, token, b"mail.example.org|192.0.2.1", b"1.000002")
    path = write(TWO)
    assert b"proceed" not in filter_chain("-f", path, data=data).stderr
    assert b"nameless connect result=proceed" in filter_chain("-v", "-f", path, data=data).stderr


# -- what is wrong -------------------------------------------------------------------------


def chain_of(name: str, table: str = "") -> str:
    return f'[filter.{name}]\n{table}\n[chain.inbound]\nfilters = ["{name}"]\n'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        # No TOML.
        ("a = \n", "1:5: Invalid value"),
        ('verbose = true\nlong-lines = "x', "2: Unterminated string"),
        ("a = 1\na = 2\n", "2:6: a: given twice"),
        ("[chain.x", "1: Expected ']' at the end of a table declaration"),
        # The top.
        ("", "no chain: a table [chain.NAME] with filters = [...] is required"),
        ("xyzzy = 1", f'unknown key "xyzzy"{TOP_KEYS}'),
        ("[chains.x]", 'unknown key "chains", did you mean "chain"?'),
        ("long_lines = 1", 'unknown key "long_lines", did you mean "long-lines"?'),
        ("action = 'junk'", f'unknown key "action"{TOP_KEYS}'),
        ("verbose = 'yes'\n[chain.x]\n", "verbose: expected true or false, not a string"),
        ("filter = 3", "filter: expected tables [filter.NAME]"),
        ("[[chain]]", "chain: expected tables [chain.NAME]"),
        (
            "[filter]\nfcrdns = true",
            "[filter]: fcrdns isn't a table (expected [filter.NAME])",
        ),
        # Chains.
        ("[chain.x]", "[chain.x]: filters is required"),
        ("[chain.x]\nfilters = []", "[chain.x]: filters: at least one is required"),
        (
            "[chain.x]\nfilters = 'fcrdns'",
            '[chain.x]: filters: expected an array, not a string: write ["fcrdns"]',
        ),
        ("[chain.x]\nfilters = [1]", "[chain.x]: filters: expected a string, not an integer"),
        ("[chain.x]\nfilter = []", '[chain.x]: unknown key "filter", did you mean "filters"?'),
        (
            '[chain.x]\nfilters = ["fcrdns", "fcrdns"]',
            '[chain.x]: filters: "fcrdns" is given twice (give one another name, with use = "...")',
        ),
        (
            '[chain.x]\nfilters = ["fcrdn"]',
            '[chain.x]: filters: no filter "fcrdn", did you mean "fcrdns"?',
        ),
        (
            '[filter.nameless]\nuse = "fcrdns"\n[chain.x]\nfilters = ["namless"]',
            '[chain.x]: filters: no filter "namless", did you mean "nameless"?',
        ),
        ('[chain.x]\nfilters = ["_client"]', f'[chain.x]: filters: no filter "_client"{FILTERS}'),
        ('[chain.x]\nfilters = [""]', "[chain.x]: filters: use: expected the name of a filter"),
        # Filters.
        (chain_of("frcdns"), '[filter.frcdns]: no filter "frcdns", did you mean "fcrdns"?'),
        (
            chain_of("x", 'use = "frcdns"'),
            '[filter.x]: use: no filter "frcdns", did you mean "fcrdns"?',
        ),
        (chain_of("x", "use = 1"), "[filter.x]: use: expected the name of a filter, as a string"),
        (
            chain_of('"a b"', 'use = "fcrdns"').replace('[""', '["').replace('""]', '"]'),
            "[filter.a b]: a name consists of letters, digits, - and _",
        ),
        (
            chain_of("fcrdns", 'acton = "junk"'),
            '[filter.fcrdns]: unknown key "acton", did you mean "action"?',
        ),
        (
            chain_of("fcrdns", 'on_error = "junk"'),
            '[filter.fcrdns]: unknown key "on_error", did you mean "on-error"?',
        ),
        (
            chain_of("fcrdns", 'action = "drop"'),
            '[filter.fcrdns]: action: invalid choice "drop" (choose from junk, reject, disconnect)',
        ),
        (
            chain_of("fcrdns", 'deadline = "soon"'),
            (
                "[filter.fcrdns]: deadline: expected a time such as 30, 1.5s, 500ms, 5m, 1h or 1d, "
                'not "soon"'
            ),
        ),
        (
            chain_of("fcrdns", 'on-error = "reject"'),
            (
                '[filter.fcrdns]: on-error: invalid choice "reject" (choose from proceed, junk, '
                "tempfail)"
            ),
        ),
        (
            chain_of("fcrdns", "verbose = true"),
            "[filter.fcrdns]: verbose must be at the top of the file, or in [chain.NAME]",
        ),
    ],
)
def test_an_error_has_its_place(content: str, line: str) -> None:
    # Older versions of Python say the same of TOML in other words.
    place, _, reason = line.partition(": ")
    found = said(content)
    if re.fullmatch(r"\d+(:\d+)?", place):
        assert found.startswith(place), reason
    elif content.startswith('[chain.x]\nfilters = [""]'):
        assert found.startswith(line)
    else:
        assert found == line


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (
            '[filter.x]\n\nuse="fcrdns"\nacton = 1\n[chain.x]\nfilters = ["x"]',
            "4: [filter.x]: unknown",
        ),
        ('[chain.x]\n\nfilters = ["fcrdn"]', "3: [chain.x]: filters: no filter"),
        ('[chain.x]\n\nfilters = ["helo", "helo"]', '3: [chain.x]: filters: "helo" is given twice'),
        ("[chain.x]\n\nfilters = []", "3: [chain.x]: filters: at least one"),
        (
            '[filter.fcrdns]\nverify = 1\n[chain.x]\nfilters = ["fcrdns"]',
            "2: [filter.fcrdns]: verify: ",
        ),
        (
            '[chain.x]\nfilters = ["a.b"]\n\n[filter."a.b"]\nuse = "helo"',
            "4: [filter.a.b]: a name consists",
        ),
        ('filter.helo.invalid = 5\n[chain.x]\nfilters = ["helo"]', " [filter.helo]: invalid: "),
        ("[chain.x]\na = 1\na = 2\n", "3:6: a: given twice"),
        ('[chain.x]\na = "x\n', "2:7: a: the quote at the end of the text is missing"),
    ],
)
def test_an_error_has_its_line(content: str, place: str) -> None:
    with pytest.raises(ConfigError) as failure:
        serve(content, "x")
    assert str(failure.value).removeprefix("x.toml:").startswith(place)


def test_a_table_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    assert said(chain_of("mailfrom", f'domains = "file:{path}"')) == (
        f"[filter.mailfrom]: domains: {path}: No such file or directory"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("action = reject", 'action: text without quotes; write action = "..."'),
        ("deadline = 5m", 'deadline: text without quotes; write deadline = "..."'),
        ("allow = 192.0.2.0/24 # x", 'allow: text without quotes; write allow = "..."'),
        ("nameserver = [127.0.0.1]", 'nameserver: text without quotes; write nameserver = ["...'),
        ('nameserver = ["::1", x]', 'nameserver: text without quotes; write nameserver = ["...'),
        ("nameserver = [\n x ]", 'text without quotes; write "..."'),
        ("verify = True", "verify: text without quotes; write verify = true"),
        ("verify = off # x", "verify: text without quotes; write verify = false"),
        ("action =", "action: no value"),
        ("action = # x", "action: no value"),
        ('action = "junk" "x"', "action: Expected newline or end of document after a statement"),
        ("action 2", "Expected '=' after a key"),
    ],
)
def test_an_error_in_the_toml_suggests_what_to_write(row: str, reason: str) -> None:
    found = said(f'[filter.fcrdns]\n{row}\n[chain.x]\nfilters = ["fcrdns"]\n')
    place, _, text = found.partition(": ")
    assert re.fullmatch("[23]:[0-9]+", place)
    assert text.startswith(reason)


def test_a_key_is_any_of_a_flags_spellings() -> None:
    content = chain_of("senderscore", "junkBelow = 70\nblock-below = 30\nm = 1")
    assert '[filter.senderscore]: unknown key "m"' in said(content)
    file = ChainFile("x.toml", chain_of("senderscore", "junkBelow = 70\nblock-below = 30"))
    [declared] = file.declared(file.chain(""))
    assert (declared.own.junk_below, declared.own.block_below) == (70, 30)  # type: ignore[attr-defined]
    both = chain_of("senderscore", "junkBelow = 70\njunk-below = 60")
    assert said(both) == "[filter.senderscore]: junkBelow and junk-below are the same key"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            chain_of("rcpt", 'unknown-domain = "reject"'),
            "[filter.rcpt]: unknown-domain requires domains",
        ),
        (
            '[chain.x]\nfilters = ["mailfrom"]',
            (
                "[chain.x]: filters: mailfrom: nothing to guard: domains, addresses, patterns or "
                "senders is required"
            ),
        ),
        (
            chain_of("fcrdns", 'nameserver = ["127.0.0.1"]'),
            "[filter.fcrdns]: nameserver requires verify",
        ),
        (
            chain_of("x", 'use = "fcrdns"\nreply = "250 fine"'),
            "[filter.x]: reply: a reply is a 4xx or 5xx code, a space and a text, not '250 fine'",
        ),
    ],
)
def test_what_a_filter_finds_wrong_itself(
    write: Callable[..., Path], content: str, line: str
) -> None:
    path = write(content)
    status, [shown] = check(path)
    assert (status, without_line(shown)) == (1, f"filter-chain: {path}: {line}")
    assert without_line(shown) != shown
    done = filter_chain("-f", path, data=SmtpdConnection().configure())
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"{shown}\n"


def test_two_greylists_are_warned_of(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(
        f'[filter.one]\nuse = "greylist"\nstore = "sqlite:{tmp_path}/one"\n'
        f'[filter.two]\nuse = "greylist"\nstore = "sqlite:{tmp_path}/two"\n'
        '[chain.x]\nfilters = ["one", "two"]\n[chain.y]\nfilters = ["two"]\n'
    )
    status, [warning, _] = check(path)
    assert status == 0
    assert warning == (
        f'filter-chain: {path}: warning: [chain.x]: filter "two", behind "one", delays the same '
        "mail a second time; one of them is enough"
    )


def test_a_filter_behind_one_that_signs(write: Callable[..., Path]) -> None:
    code = GREET.replace(
        "    class Options", "    signs = edits_signed = True\n\n    class Options"
    )
    assert code != GREET
    use = f'use = "{write(code, "sign.py")}"'
    path = write(f"[filter.one]\n{use}\n[filter.two]\n{use}\n[chain.x]\nfilters = ['one', 'two']")
    wrong = "two must be ahead of one, whose signature should cover its edits"
    assert check(path) == (1, [f"filter-chain: {path}: [chain.x]: {wrong}"])


def test_invalid_utf_8(write: Callable[..., Path]) -> None:
    path = write(b"verbose = true\n# \xff\n")
    assert check(path) == (1, [f"filter-chain: {path}:2: not UTF-8"])


@given(st.text() | st.text('[]."=\n chainfltersuv#{}', max_size=60))
@example("[chain.a]\nfilters = [\"trace\"]\n[filter.trace]\nrecord = '\\0'")
@example("[chain]\n[filter]\n")
@example("chain.x = {}")
@example(f"x = {'9' * 5000}")
@example(f"x = {'[' * 5000}")
@example("x = 1979-13-32")
@example("x\r= 1")
def test_any_content_is_a_file_or_an_error(content: str) -> None:
    try:
        file = ChainFile("x.toml", content)
        for chain in file.chains:
            file.process(chain)
    except ConfigError as error:
        lines = str(error)
    else:
        lines = ""
    assert not lines or lines.isprintable()


def test_no_filter_has_a_key_that_is_taken() -> None:
    """Whatever a filter declares can be said in the file."""
    found, broken = discover()
    assert not broken
    for cls in found:
        policy = policy_options(cls.outcomes(), cls.on_error, cls.deadline)
        own = {declared.key for declared in cls.Options.options.values()}
        shared = {declared.key for declared in policy.options.values()}
        assert not own & {*shared, chain_file.USE}, cls.name
        assert chain_use.find(cls.name) is cls


# -- what is loaded ------------------------------------------------------------------------


def modules(path: Path) -> set[str]:
    """What a process has loaded that was ready."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: sys.stderr.write('\\n'.join(sys.modules)))\n"
        "from smtpd_filters.cli.chain import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", program, "-f", str(path), "--chain", "light"],
        input=SmtpdConnection().configure(),
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.stdout.endswith(b"register|ready\n"), done.stderr
    return set(done.stderr.decode().splitlines())


def test_a_chain_loads_what_its_filters_need(write: Callable[..., Path], tmp_path: Path) -> None:
    heavy = f'\n[filter.fcrdns]\nverify = true\nallow = "file:{tmp_path}/missing"\n'
    heavy += '[chain.heavy]\nfilters = ["fcrdns", "nonsense"]\n'
    loaded = modules(
        write(
            f'[chain.light]\nfilters = ["dyndns", "mailfrom"]\n'
            f'[filter.mailfrom]\ndomains = "example.org"\n{heavy}'
        )
    )
    assert "smtpd_filters.filters.mailfrom" in loaded
    assert loaded.isdisjoint({
        "asyncio", "dataclasses", "inspect", "ssl", "logging", "dns", "aiohttp", "argparse",
        "importlib.metadata", "smtpd_filters.filters.fcrdns", "smtpd_filters.cli.listing",
    })  # fmt: skip


def test_look_ups_have_a_loop(write: Callable[..., Path]) -> None:
    path = write('[filter.fcrdns]\nverify = true\n[chain.x]\nfilters = ["dyndns", "fcrdns"]\n')
    file = ChainFile.read(str(path))
    ready = [set_up(each.make(), Log(), each.policy) for each in file.declared("x")]
    assert Chain(ready, Log()).waits
    assert not Chain(ready[:1], Log()).waits


# -- filters of the operator's own ---------------------------------------------------------


def own(path: Path, name: str = "", keys: str = "") -> str:
    return chain_of("greet", f'use = "{path}{name}"\n{keys}')


@pytest.mark.parametrize("name", ["", ":Greet"])
def test_a_filter_in_a_file(write: Callable[..., Path], name: str) -> None:
    path = write(GREET, "greet.py")
    with serve(own(path, name, 'name = "bad.example"')) as smtpd:
        assert smtpd.connect().ehlo("bad.example").reply == "550 5.7.1 Not you"
        assert smtpd.connect().ehlo("evil.example").verb == "proceed"
        assert ' greet ehlo result=reject reason="greets as bad.example"' in smtpd.log[0]
    assert is_well(write(own(path, name)))


def test_a_file_may_use_whatever_python_has(write: Callable[..., Path]) -> None:
    head = "from dataclasses import dataclass\n@dataclass\nclass Seen:\n    number: int = 0\n"
    path = write(f"from __future__ import annotations\n{head}{GREET}", "greet.py")
    with serve(own(path)) as smtpd:
        assert smtpd.connect().ehlo("evil.example").refused


def test_what_it_prints_is_for_the_log(write: Callable[..., Path]) -> None:
    """smtpd ends on a line that isn't of the protocol, even before a filter is ready."""
    path = write(f"print('imported')\n{GREET}", "greet.py")
    done = filter_chain("-f", write(own(path)), data=SmtpdConnection().configure())
    assert b"imported" not in done.stdout
    assert done.stdout.endswith(b"register|ready\n")
    assert done.stderr == b"imported\n"


def test_a_filter_in_a_module() -> None:
    content = chain_of("dynamic", 'use = "smtpd_filters.filters.dyndns:Dyndns"')
    with serve(content) as smtpd:
        assert type(smtpd.filters[0]) is Dyndns
        assert smtpd.filters[0].name == "dynamic"


def test_a_filter_of_another_distribution(install: Callable[..., None]) -> None:
    module = "smtpd_filters.filters.fcrdns"
    install(f"other={module}:Fcrdns", f"odd={module}:run")
    assert chain_use.find("other") is Fcrdns
    assert said(chain_of("odd")) == '[filter.odd]: the entry point "odd" is not a filter'


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ("x = 1\n", "", "{path}: no filter class"),
        (GREET, ":Gret", '{path}: no filter class "Gret"'),
        (GREET, ":Settings", '{path}: no filter class "Settings"'),
        (
            GREET + GREET.partition("\n\n\n")[2].replace("class Greet", "class Other"),
            "",
            "{path}: several filters; choose one with {path}:CLASS: Greet, Other",
        ),
        ("import nowhere\n", "", "{use}: No module named 'nowhere'"),
        ("def f(:\n", "", "{use}: SyntaxError: "),
        ("1 / 0\n", "", "{use}: ZeroDivisionError: division by zero ["),
        ("raise SystemExit(0)\n", "", "{use}: SystemExit: 0 ["),
        (
            GREET.replace("def ehlo", "def elho"),
            "",
            "{use}: TypeError: filter 'greet' ({path}.Greet): ",
        ),
    ],
)
def test_a_file_without_the_filter(
    write: Callable[..., Path], content: str, name: str, reason: str
) -> None:
    path = write(content, "f.py")
    where = reason.format(path=path, use=f"{path}{name}")
    assert said(own(path, name)).startswith(f"[filter.greet]: use: {where}")


RELATIVE = "not an absolute path; give its whole path, as in /etc/mail/filters/x.py:Class"


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        ("./greet.py", f"./greet.py: {RELATIVE}"),
        ("greet/own.py:Greet", f"greet/own.py: {RELATIVE}"),
        ("greet.py", f"greet.py: {RELATIVE}"),
        ("greet.py:Greet", f"greet.py: {RELATIVE}"),
        ("FOLDER/missing.py", "FOLDER/missing.py: No such file or directory"),
        ("/dev/null", "/dev/null: not a regular file"),
        ("/", "/: Is a directory"),
        ("nowhere.at_all:Greet", "nowhere.at_all:Greet: No module named 'nowhere'"),
        ("os:path", 'os: no filter class "path"'),
        ("smtpd_filters:Filter", 'smtpd_filters: no filter class "Filter"'),
        (":Greet", ":Greet: "),
        ("/x\\u0000y", "/x\\x00y: "),  # what is wrong, Python says in several ways
    ],
)
def test_a_filter_that_is_nowhere(use: str, reason: str, tmp_path: Path) -> None:
    use, reason = (text.replace("FOLDER", str(tmp_path)) for text in (use, reason))
    assert said(chain_of("greet", f'use = "{use}"')).startswith(f"[filter.greet]: use: {reason}")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise ModuleNotFoundError("No module named 'aiohttp'", name="aiohttp")

    monkeypatch.setattr(chain_use, "import_module", missing)
    assert said(chain_of("rspamd")) == "[filter.rspamd]: rspamd: No module named 'aiohttp'"


# -- who may have written it ---------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o622, 0o777])
def test_what_others_may_write_is_not_read(write: Callable[..., Path], mode: int) -> None:
    path = write(TWO, mode=mode)
    only = "users other than its owner can write to it: chmod go-w"
    assert check(path)[1] == [f"filter-chain: {path}: {only} {path}"]
    path = write(GREET, "greet.py", mode)
    found = said(own(path))
    assert found == f"[filter.greet]: use: {path}: {only} {path}"


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o644, 0o755])
def test_any_permission_to_read_is_accepted(write: Callable[..., Path], mode: int) -> None:
    assert is_well(write(TWO, mode=mode))


def test_a_folder_that_everybody_may_write_to(write: Callable[..., Path]) -> None:
    path = write(GREET, "greet.py")
    path.parent.chmod(0o777)
    reason = f"{path}: every user can write to its directory: chmod o-w {path.parent}"
    assert said(own(path)) == f"[filter.greet]: use: {reason}"
    # As /tmp is: there, only its owner can put another in its place.
    path.parent.chmod(0o1777)
    assert chain_use.read_safely(str(path)) == GREET.encode()


@needs_root
def test_what_another_user_owns_is_not_read(write: Callable[..., Path]) -> None:
    path = write(TWO)
    os.chown(path, 65534, 65534)
    assert check(path)[1] == [
        f"filter-chain: {path}: its owner is neither root nor the current user"
    ]


def test_no_fifo_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "chains.toml"
    os.mkfifo(path)
    assert check(path) == (1, [f"filter-chain: {path}: not a regular file"])


# -- flags ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--chian", "x"], 'unknown flag --chian, did you mean "--chain"?'),
        (["--chain"], "--chain needs a value (TEXT)"),
        (["inbound"], 'unexpected argument "inbound"'),
        (["-f", "FOLDER/x.toml"], "FOLDER/x.toml: No such file or directory"),
        (["--user", "root"], "--user requires --check"),
    ],
)
def test_wrong_flags(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *words, line = (text.replace("FOLDER", str(tmp_path)) for text in (*words, line))
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"filter-chain: {line}\n")


def test_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    assert "-n, --check" in capsys.readouterr().out


def test_the_file_is_beside_smtpd_conf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [tmp_path / "a.toml", tmp_path / "b.toml"]
    tried = tuple(map(str, places))
    with pytest.raises(SystemExit):
        program.main([], places=tried)
    nowhere = f"no such file: {places[0]}, {places[1]}; name one with --config"
    assert capsys.readouterr().err == f"filter-chain: {nowhere}\n"
    places[0].symlink_to("nowhere")
    with pytest.raises(SystemExit):
        program.main([], places=tried)
    assert capsys.readouterr().err == f"filter-chain: {places[0]}: No such file or directory\n"
    places[0].unlink()
    places[1].write_text("nonsense")
    with pytest.raises(SystemExit):
        program.main([], places=tried)
    assert capsys.readouterr().err.startswith(f"filter-chain: {places[1]}:1: ")


# -- checking ------------------------------------------------------------------------------


def test_a_check_finds_all_that_is_wrong(write: Callable[..., Path]) -> None:
    content = """
    [filter.a]
    use = "fcrdns"
    acton = "junk"
    [filter.b]
    use = "rcpt"
    unknown-domain = "log"
    [filter.unused]
    use = "dyndns"
    phase = "lunch"
    [chain.x]
    filters = ["a", "b", "dyndns"]
    [chain.y]
    filters = ["b", "nowhere"]
    [chain.z]
    """
    path = write(content)
    status, lines = check(path)
    assert status == 1
    assert [without_line(line).split(": ")[2] for line in lines] == [
        *("[filter.a]", "[filter.b]", "[filter.unused]", "[chain.y]", "[chain.z]")
    ]
    # Of one chain, what keeps that from starting.
    _, lines = check(path, "--chain", "y")
    assert [without_line(line).split(": ")[2] for line in lines] == [*("[filter.b]", "[chain.y]")]
    assert check(path, "--chain", "w")[0] == 1


SCORED = """\
[filter.dyndns]
action = "reject"
score = { junk = 2, reject = 4.5 }

[filter.fcrdns]
score = 1.5

[chain.inbound]
filters = ["dyndns", "fcrdns"]
junk-at = 2
reject-at = 6
bypass-clients = "192.0.2.99"
"""


def test_a_chain_with_a_score() -> None:
    with serve(SCORED) as smtpd:
        dynamic: dict[str, Any] = {"rdns": "192-0-2-8.dyn.example", "address": "192.0.2.8"}
        client = smtpd.connect(**dynamic, fcrdns="fail")
        assert client.greeting.reply == "554 5.7.1 Refused as probable spam"
        assert smtpd.connect(**dynamic).greeting.verb == "proceed"
        friend = smtpd.connect(rdns=None, address="192.0.2.99")
        assert friend.greeting.verb == "proceed"
    assert 'points="dyndns=4.5 fcrdns=1.5"' in smtpd.log[2]


UNREACHABLE = "reject-at: 6.5 cannot be reached, the points of the filters add up to 6 at most"


@pytest.mark.parametrize(
    ("old", "new", "number", "text"),
    [
        ("junk-at = 2", "junk-at = 6", 10, "junk-at: 6 must be below reject-at, 6"),
        ("reject-at = 6", "reject-at = 6.5", 11, UNREACHABLE),
        # Where the key isn't found, the table is.
        ("reject-at = 6", "'reject-at' = 6.5", 8, UNREACHABLE),
        ("reject-at = 6", "reject-at = 0", 11, 'reject-at: must be at least 0.001, not "0"'),
        ("reject-at = 6", 'reject-at = "6"', 11, "reject-at: expected a number, not a string"),
        (
            "bypass-clients",
            'score-at = "quit"\nbypass-clients',
            12,
            'score-at: invalid choice "quit" (choose from connect, helo, mail-from, rcpt-to, data)',
        ),
        (
            '"192.0.2.99"',
            '"192.0.2.999"',
            12,
            "bypass-clients: not an address or network: '192.0.2.999'",
        ),
        (
            "score = 1.5",
            "score = { spam = 1.5 }",
            6,
            'score: unknown action "spam" (choose from junk, reject, tempfail)',
        ),
        (
            "reject-at = 6",
            "reject-at = 5.9999",
            11,
            'reject-at: expected at most three decimals, not "5.9999"',
        ),
        (
            "score = 1.5",
            "score = { junk = 0.0001 }",
            6,
            'score: expected at most three decimals, not "0.0001"',
        ),
        (
            "score = 1.5",
            "score = {}",
            6,
            "score: expected points: a number, or a table such as { junk = 2, reject = 5 }",
        ),
        (
            "score = 1.5",
            'score = 1.5\nbypass = ["junk"]',
            7,
            "bypass: junk has points, too; see score",
        ),
        (
            "junk-at = 2\nreject-at = 6\n",
            "",
            3,
            "score: requires junk-at, reject-at or score-header in the chain",
        ),
        (
            "junk-at = 2",
            "greylist-at = 2",
            10,
            "greylist-at: requires a filter of the kind greylist in the chain",
        ),
    ],
)
def test_a_mistake_in_a_rule_has_its_line(
    old: str, new: str, number: int, text: str, write: Callable[..., Path]
) -> None:
    assert old in SCORED
    path = write(SCORED.replace(old, new))
    status, lines = check(path)
    table = (
        "filter.fcrdns" if number in {6, 7} else "chain.inbound" if number > 7 else "filter.dyndns"
    )
    assert (status, lines) == (1, [f"filter-chain: {path}:{number}: [{table}]: {text}"])
    done = filter_chain("-f", path, data=SmtpdConnection().configure())
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().splitlines() == lines


def test_a_check_finds_all_that_is_wrong_with_one_filter(write: Callable[..., Path]) -> None:
    content = """
    long-lines = "cut"
    verbos = true
    [filter.a]
    use = "fcrdns"
    acton = "junk"
    phase = "data"
    deadline = "1d"
    timeout = 99
    on-error = "shrug"
    [chain.x]
    filters = "a"
    long-lines = "cut"
    """
    path = write(textwrap.dedent(content))

    def faults() -> list[str]:
        status, lines = check(path)
        assert status == 1
        return [without_line(line).removeprefix(f"filter-chain: {path}: ") for line in lines]

    assert faults()[0] == 'unknown key "verbos", did you mean "verbose"?'
    path.write_text(path.read_text().replace("verbos = true\n", "").replace("cut", "split", 1))
    assert [line.partition(": ")[::2] for line in faults()] == [
        ("[filter.a]", 'unknown key "acton", did you mean "action"?'),
        (
            "[filter.a]",
            'phase: invalid choice "data" (choose from connect, helo, mail-from, rcpt-to)',
        ),
        ("[filter.a]", 'timeout: must be at most 1m, not "99"'),
        ("[filter.a]", 'deadline: must be at most 5m, not "1d"'),
        ("[filter.a]", 'on-error: invalid choice "shrug" (choose from proceed, junk, tempfail)'),
        ("[chain.x]", 'filters: expected an array, not a string: write ["a"]'),
        ("[chain.x]", 'long-lines: invalid choice "cut" (choose from split, refuse)'),
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "[filter.fcrdns]\n[filter.dyndns]\n[filter.fcrdns]\naction = 'junk'\n",
            "3:15: [filter.fcrdns] is declared twice",
        ),
        (
            "[filter.inbound]\n[chain.x]\nfilters = ['inbound']\n",
            f'[filter.inbound]: no filter "inbound"{FILTERS}{OWN_NAME}',
        ),
        (
            "[filter.fcrdns]\nexempt = 'local'\n[chain.x]\nfilters = ['fcrdns']\n",
            '[filter.fcrdns]: exempt: expected an array of strings, not a string: write ["local"]',
        ),
        (
            "[filter.fcrdns]\nexempt = ['local, authenticated']\n[chain.x]\nfilters = ['fcrdns']\n",
            '[filter.fcrdns]: exempt: each word is a string of its own: "local", "authenticated"',
        ),
        (
            "[filter.fcrdns]\nexempt = 1\n[chain.x]\nfilters = ['fcrdns']\n",
            "[filter.fcrdns]: exempt: expected an array of strings, not an integer",
        ),
    ],
)
def test_an_error_suggests_what_to_write(content: str, line: str) -> None:
    assert said(content) == line


def test_a_byte_order_mark_is_no_part_of_a_file(write: Callable[..., Path]) -> None:
    assert is_well(write(b"\xef\xbb\xbf" + TWO.encode()))
    path = write(b"\xef\xbb\xbf\n[chain.x]\nfilters = ['\xe9']\n")
    assert check(path) == (1, [f"filter-chain: {path}:3: not UTF-8"])


def test_filters_that_no_chain_has_are_reported(write: Callable[..., Path]) -> None:
    path = write("[chain.x]\nfilters = ['dyndns']\n[filter.fcrdns]\n[filter.dyndns]\n")
    [line] = check(path)[1]
    assert "(fcrdns, dyndns; in no chain: fcrdns), as " in line
    [line] = check(path, "--chain", "x")[1]
    assert "(dyndns), as " in line


def test_a_valid_file_is_reported_as_by_smtpd(write: Callable[..., Path]) -> None:
    path = write(TWO)
    user = pwd.getpwuid(os.geteuid()).pw_name
    names = "nameless, fcrdns, dyndns"
    assert check(path) == (0, [f"configuration OK: {path} ({names}), as {user}"])
    smtpd = shutil.which("smtpd")
    if smtpd is None:
        pytest.skip("no smtpd")
    conf = write('listen on lo\naction "l" maildir\nmatch for local action "l"\n', "smtpd.conf")
    done = subprocess.run([smtpd, "-n", "-f", conf], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"configuration OK\n")
    conf.write_text("nonsense\n")
    assert (
        subprocess.run([smtpd, "-n", "-f", conf], capture_output=True, check=False).returncode == 1
    )


def test_a_filter_with_a_mistake_of_its_own(write: Callable[..., Path]) -> None:
    lunch = "\n    def setup(self):\n        return Registration({'lunch'})\n"
    path = write("from smtpd_filters import Registration\n" + GREET + lunch, "greet.py")
    _, lines = check(write(own(path)))
    assert "cannot be set up: TypeError: filter 'greet': no handler for ['lunch']" in lines[0]
    path = write(GREET + "\n    def setup(self):\n        1 / 0\n", "greet.py")
    _, lines = check(write(own(path)))
    assert "[filter.greet]: cannot be set up: ZeroDivisionError" in lines[0]
    path = write(GREET + "\n    def setup(self):\n        raise SystemExit(0)\n", "greet.py")
    status, lines = check(write(own(path)))
    assert status == 1
    assert lines[0].endswith("[filter.greet]: the filter exits during setup")
    missing = str(path.with_name("missing"))
    path = write(f"{GREET}\n    def setup(self):\n        open({missing!r})\n", "greet.py")
    _, lines = check(write(own(path)))
    assert f"[filter.greet]: [Errno 2] No such file or directory: {missing!r}" in lines[0]


@needs_root
def test_a_check_is_made_as_the_user_of_filters() -> None:
    """What root could read and smtpd's user can't would be found when smtpd starts."""
    import tempfile

    if not all(folder.stat().st_mode & 0o001 for folder in Path(os.__file__).parents):
        pytest.skip("the interpreter is root's alone")
    with tempfile.TemporaryDirectory() as folder:
        # What tmp_path is in is root's alone.
        path = Path(folder, "chains.toml")
        path.parent.chmod(0o755)
        path.write_text(
            '[filter.mailfrom]\ndomains = "file:/etc/shadow"\n[chain.x]\nfilters = ["mailfrom"]\n'
        )
        path.chmod(0o644)
        # A checkout may be root's alone, too, and what is needed of it is read by that user.
        where = path.parent
        shutil.copytree(ROOT / "smtpd_filters", where / "smtpd_filters")
        done = filter_chain("-n", "-f", path, "--user", "nobody", where=where)
        assert done.returncode == 1
        reason = "[filter.mailfrom]: domains: /etc/shadow: Permission denied for user nobody"
        assert done.stderr.decode() == f"filter-chain: {path}:2: {reason}\n"
        path.chmod(0o600)
        done = filter_chain("-n", "-f", path, "--user", "nobody", where=where)
        assert done.stderr.decode() == f"filter-chain: {path}: Permission denied for user nobody\n"
        done = filter_chain("-n", "-f", path, "--user", "no-such-user")
        assert done.stderr.decode() == "filter-chain: --user: no user no-such-user\n"


def test_a_python_that_the_user_of_filters_cannot_read_is_named(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one in root's home."""
    monkeypatch.setattr(chain_check, "_become", lambda _: None)
    monkeypatch.setitem(sys.modules, "tomllib", None)
    with pytest.raises(SystemExit) as ended:
        program.main(["-n", "-f", str(write(TWO))])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("filter-chain: the user ")
    assert f"can't read this Python, {sys.executable}," in line


def test_the_directory_that_keeps_the_user_from_this_python_is_named(
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A virtual environment's Python is often a link to one in root's home."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python3").touch()
    (tmp_path / "python3").symlink_to(home / "bin" / "python3")
    monkeypatch.setattr(chain_check, "_become", lambda _: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    monkeypatch.setattr(os, "access", lambda path, _mode: str(path) != str(home))
    monkeypatch.setitem(sys.modules, "tomllib", None)
    with pytest.raises(SystemExit):
        program.main(["-n", "-f", str(write(TWO))])
    assert f", or its modules: it may not enter {home}, so smtpd" in capsys.readouterr().err


def test_only_root_becomes_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    chain_check._become("")
    with pytest.raises(ConfigError, match="only root"):
        chain_check._become("nobody")


def test_the_users_of_smtpd(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    became: list[Any] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, became.append)
    known: dict[str, Any] = {}
    monkeypatch.setattr(pwd, "getpwnam", lambda name: known[name])
    chain_check._become("")  # without any, it stays what it is
    assert became == []
    known["smtpd"] = pwd.struct_passwd(("smtpd", "x", 7, 8, "", "/", "/"))
    chain_check._become("")
    assert became == [[8], 8, 7]
    known["_smtpd"] = pwd.struct_passwd(("_smtpd", "x", 95, 96, "", "/", "/"))
    chain_check._become("")
    assert became[3:] == [[96], 96, 95]


# -- the example and the manual ------------------------------------------------------------


def test_the_example_is_one(write: Callable[..., Path], tmp_path: Path) -> None:
    content = EXAMPLE.read_text("utf-8")
    files = {
        "domains": "example.org\n",
        "senders": "anna anna@example.org\n",
        "spamtraps": "trap@example.org\n",
    }
    for name in set(re.findall(r"file:/etc/mail/(\w+)", content)):
        write(files.get(name, "192.0.2.1\n"), name)
    path = write(content.replace("/etc/mail", str(tmp_path)))
    assert is_well(path)
    commands = re.findall(r'proc-exec "filter-chain(.*)"$', content, re.MULTILINE)
    chains = [word.split("--chain ")[1].split()[0] for word in commands]
    assert sorted(chains) == sorted(tomllib.loads(content)["chain"])
    for chain in chains:
        done = filter_chain("-f", path, "--chain", chain, data=SmtpdConnection().configure())
        assert done.stdout.endswith(b"register|ready\n"), done.stderr


def pieces_of_toml() -> list[str]:
    """The examples of the manual page."""
    text = MANUAL.read_text("utf-8")
    blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", text, re.MULTILINE | re.DOTALL)
    return [block.replace("\\e", "\\") for block in blocks if "[chain." in block]


@pytest.mark.parametrize("content", pieces_of_toml())
def test_each_example_of_the_manual_is_one(
    content: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    write("example.org\n", "domains")
    write("192.0.2.0/24\n", "partners")
    (tmp_path / "filters").mkdir()
    write(GREET, "filters/greet.py")
    write(GREET.replace("Greet", "Partners"), "filters/partners.py")
    assert is_well(write(content.replace("/etc/mail", str(tmp_path))))


def test_each_key_is_in_the_manual() -> None:
    text = MANUAL.read_text("utf-8").replace("\\-", "-")
    keys = {declared.key for declared in chain_file.ChainSettings.options.values()}
    keys |= {declared.key for declared in policy_options().options.values()} | {chain_file.USE}
    keys |= {declared.key for declared in FilterRules.options.values()}
    named = {
        word for line in re.findall(r"^\.It Cm (.*)$", text, re.MULTILINE) for word in line.split()
    }
    assert named - {","} == keys
