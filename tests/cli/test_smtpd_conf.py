"""Tests of the parser of smtpd.conf(5).

tests/e2e/test_check.py has the real smtpd parse the same files.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.cli.smtpd_conf import Configuration, read
from smtpd_filters.cli.smtpd_conf.lexer import DEEPEST, LARGEST
from smtpd_filters.errors import ConfigError
from tests.cli.configurations import ACCEPTED, REFUSED, RULES, Case, used

ROOT = Path(__file__).parents[2]
SOCKET = "listen on socket filter f\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "smtpd.conf"


def parse(path: Path, text: str, **macros: str) -> Configuration:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return read(str(path), macros)


def warnings(path: Path, text: str) -> list[str]:
    found = parse(path, text)
    assert found.errors == []
    return [str(problem).removeprefix(f"{path}:") for problem in found.problems]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_what_smtpd_accepts(case: Case, path: Path) -> None:
    found = parse(path, case.text + RULES)
    assert found.errors == []
    assert {program.name: program.command for program in found.programs} == case.commands


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_smtpd_refuses(case: Case, path: Path) -> None:
    errors = [str(problem) for problem in parse(path, case.text + RULES).errors]
    assert [error for error in errors if case.error in error], errors
    assert all(error.startswith(f"{path}:") for error in errors)


def test_the_options_of_a_program(path: Path) -> None:
    options = 'user alice group "mail" chroot "/var/empty"'
    found = parse(path, f'proc p "x" {options}\nfilter f proc-exec "y" chroot "/x"\n')
    one, two = found.programs
    assert (one.statement, one.name, one.place.line) == ("proc", "p", 1)
    assert (one.user, one.group, one.chroot) == ("alice", "mail", "/var/empty")
    assert (two.statement, two.user, two.group, two.chroot) == ("filter", "", "", "/x")


def test_lines_are_counted_as_smtpd_does(path: Path) -> None:
    text = '# \\\n\nm = "a \\\n b"\nt = "x\ny"\nfilter \\\n a proc-exec "x"\n\nfilter b proc-exec y'
    found = parse(path, text)
    assert [program.place.line for program in found.programs] == [7, 10]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("filter a proc-exec $x\nfilter b proc-exec x\n", 1),
        ('\n\nfilter a proc-exec "x" "y"\n', 3),
        ("\nfilter a \\\n proc-exec 12\n", 3),
    ],
)
def test_an_error_has_its_line(text: str, line: int, path: Path) -> None:
    [error] = parse(path, text).errors
    assert error.place == (str(path), line)


# -- includes and macros ---------------------------------------------------------------------


def test_an_included_file_shares_macros_and_filters(path: Path) -> None:
    inner = path.with_name("inner.conf")
    inner.write_text('c = "filter-x"\n\nfilter f proc-exec $c')
    found = parse(
        path, f'include "{inner}"\nfilter g proc-exec $c\nlisten on lo filter {{ f, g }}\n'
    )
    assert found.errors == []
    first, second = found.programs
    assert first.place == (str(inner), 3)
    assert second.place == (str(path), 2)
    inner.write_text("\nfilter f proc-exec\n")
    [error, *_] = parse(path, f'include "{inner}"\n').errors
    assert error.place == (str(inner), 2)


def test_includes_without_end(path: Path, tmp_path: Path) -> None:
    """Each file of a level includes both of the next."""
    for level in range(60):
        for side in "ab":
            text = "".join(f'include "{tmp_path}/{next_}{level + 1}"\n' for next_ in "ab")
            (tmp_path / f"{side}{level}").write_text(text)
    errors = parse(path, f'include "{tmp_path}/a0"\n').errors
    assert [str(each) for each in errors] == [
        f"{tmp_path}/a38:1: include: {tmp_path}/a39: includes are nested more than 40 deep"
    ]
    for side in "ab":
        (tmp_path / f"{side}30").write_text("")
    errors = parse(path, f'include "{tmp_path}/a0"\n').errors
    assert [
        str(each).partition(": ")[2].partition(": ")[2].partition(": ")[2] for each in errors
    ] == ["more than 500 includes"]


def test_too_many_includes_are_one_error(path: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("listen on lo\n")
    [error] = parse(path, f'include "{tmp_path}/a"\n' * 2000).errors
    assert str(error) == f"{path}:501: include: {tmp_path}/a: more than 500 includes"


def test_a_file_that_includes_itself_twice(path: Path) -> None:
    assert len(parse(path, f'include "{path}"\n' * 2).errors) == 2


def test_an_included_file_that_is_not_regular(path: Path, tmp_path: Path) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to("/no/such")
    for name, reason in (
        (fifo, "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path, "Is a directory"),
        (link, "dangling symbolic link to /no/such: No such file or directory"),
    ):
        [error, *_] = parse(path, f'include "{name}"\n').errors
        assert str(error) == f"{path}:1: include: {name}: {reason}"


def test_a_file_that_is_too_large(path: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, LARGEST + 1)
    [error, *_] = parse(path, f'include "{large}"\n').errors
    assert str(error) == f"{path}:1: include: {large}: larger than 16 MiB"


def test_a_file_that_includes_itself(path: Path) -> None:
    [error] = parse(path, f'include "{path}"\n').errors
    assert str(error) == f"{path}:1: include: {path}: includes itself"
    assert DEEPEST < 100


def test_a_macro_of_the_command_line_counts_before_that_of_the_file(path: Path) -> None:
    text = 'c = "theirs"\nfilter f proc-exec $c\n'
    [program] = parse(path, text, c="ours").programs
    assert program.command == "ours"
    [program] = parse(path, text, d="ours").programs
    assert program.command == "theirs"


def test_a_macro_with_a_blank_in_its_name(path: Path) -> None:
    [error] = parse(path, '"a b" = "c"\n').errors
    assert error.text == 'the name of the macro "a b" has a blank'


def test_a_file_that_cannot_be_read(path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read(str(path))
    assert str(raised.value) == f"{path}: No such file or directory"


# -- warnings --------------------------------------------------------------------------------


def test_what_is_not_used(path: Path) -> None:
    text = (
        'proc p "x"\nproc q "y"\nfilter a proc p\nfilter b proc-exec "z"\nfilter c proc-exec "z"\n'
        "filter d chain { c }\nfilter e chain { a, b }\nlisten on socket filter e\n"
    )
    assert warnings(path, text) == [
        '5: warning: filter "c" is not used: no listener or action names it',
        '6: warning: filter "d" is not used: no listener or action names it',
        '2: warning: proc "q" is not used: no filter names it',
    ]


def test_what_an_invalid_statement_may_have_named_is_not_called_unused(path: Path) -> None:
    declared = 'filter f proc-exec "x"\n'
    for wrong in ("listen on socket filter g\n", "listen on lo0 filter f $x\n"):
        found = parse(path, declared + wrong).problems
        assert [each.warning for each in found] == [False], found


@pytest.mark.parametrize(
    ("comment", "swallowed"),
    [
        ("# a \\\n", [2]),
        ("# a \\\n \\\n", [3]),
        ("# a \\\n# b \\\n", [3]),
        ("# a \\\nb \\\n", [2, 3]),
        ("filter g proc-exec x # a \\\n\t", [2]),
        ("# a \\\n#", []),
        ("# a \\\n\n", []),
        ("# a \\ \n", []),
        ("# a \\b\n", []),
    ],
)
def test_a_line_that_a_comment_swallows(comment: str, swallowed: list[int], path: Path) -> None:
    found = parse(path, f"{comment}filter f proc-exec x\n")
    assert found.errors == []
    told = "is part of the comment on the line before, which ends with a backslash"
    assert [str(each) for each in found.warnings if each.text == told] == [
        f"{path}:{line}: warning: {told}" for line in swallowed
    ]


def test_a_socket_without_filters(path: Path) -> None:
    [warning] = warnings(path, used("filter f proc-exec x"))
    assert warning.startswith("1: warning: no `listen on socket filter ...`: mail that programs")
    assert warnings(path, used("filter f proc-exec x") + "listen on socket\n") == []
    # Where nothing is filtered nothing is missing.
    assert warnings(path, "listen on 127.0.0.1\n") == []


def test_two_greylists_are_warned_of(path: Path) -> None:
    one, two = (f'filter {each} proc-exec "filter-greylist -v"\n' for each in "ab")
    two = two.replace("-v", "--filter-name b")
    [warning] = warnings(
        path, f"{one}{two}listen on 127.0.0.1 filter {{ a, b }}\nlisten on socket filter a\n"
    )
    assert warning.endswith(
        'filter "b", behind "a", delays the same mail a second time; one of them is enough'
    )
    listeners = "listen on 127.0.0.1 filter a\nlisten on socket filter b\n"
    assert warnings(path, f"{one}{two}{listeners}") == []


FOR_USERS = [
    "filter-limit --limit 'user messages 200/1h'",
    "/opt/filter-limit --limit 'all bytes 1M/1d' --limit='client+user failed-auth 5/1h'",
    "filter-supervise filter-mailfrom --senders file:/etc/mail/senders",
]
LISTENERS = "listen on 127.0.0.1 filter l\n{}\nlisten on socket\n"


@pytest.mark.parametrize("command", FOR_USERS)
def test_a_filter_for_users_where_nobody_authenticates(path: Path, command: str) -> None:
    declared = f'filter l proc-exec "{command}"\n'
    [warning] = warnings(path, declared + LISTENERS.format(""))
    assert warning.startswith('1: warning: filter "l": --')
    assert warning.endswith("users, and no listener with `auth` names the filter")
    for auth in ("auth", "auth <users>", "auth-optional"):
        users = f"table users {{ a = b }}\nlisten on 127.0.0.1 port 587 tls-require {auth} filter l"
        assert warnings(path, declared + LISTENERS.format(users)) == []
    # In a chain and as a proc as well.
    text = f'proc p "{command}"\nfilter x proc p\nfilter l chain {{ x }}\n'
    [warning] = warnings(path, text + LISTENERS.format(""))
    assert warning.startswith('1: warning: proc "p": --')
    users = "listen on 127.0.0.1 port 587 tls-require auth filter l"
    assert warnings(path, text + LISTENERS.format(users)) == []


@pytest.mark.parametrize(
    "command",
    [
        "filter-limit --limit 'client messages 200/1h' --override user",
        "filter-limit --limit 'user messages many'",  # an error, and reported as such
        "filter-mailfrom --domains example.org",
        "filter-mailfrom",
        "filter-other --limit 'user messages 200/1h'",
        "filter-limit --limit 'user",
    ],
)
def test_a_filter_for_all_where_nobody_authenticates(path: Path, command: str) -> None:
    assert warnings(path, f'filter l proc-exec "{command}"\n' + LISTENERS.format("")) == []


def test_a_macro_in_quotes(path: Path) -> None:
    macros = 'lan = "192.0.2.0/24"\nscan = "filter-x"\n'
    declared = 'filter f proc-exec "filter-x --trusted ${lan} --also $lan --home $HOME"\n'
    [warning] = warnings(path, f"{macros}{declared}{SOCKET}")
    assert warning.startswith('3: warning: filter "f": $lan is not replaced: ')
    assert warnings(path, f"{macros}filter f proc-exec $scan\n{SOCKET}") == []


@pytest.mark.parametrize(
    ("builtin", "warning"),
    [
        ('auth match !auth disconnect "550 no"', "smtpd runs `phase auth` when a client connects"),
        ('connect match rdns reject "go away"', 'reject "go away": without a code from 400 to 599'),
        ('connect match rdns disconnect "250 x"', 'disconnect "250 x": without a code'),
        ('connect match rdns disconnect "550"', 'disconnect "550": without a code'),
    ],
)
def test_builtin_filters_that_surprise(builtin: str, warning: str, path: Path) -> None:
    [found] = warnings(path, f"filter f phase {builtin}\n{SOCKET}")
    assert found.startswith('1: warning: filter "f": ')
    assert warning in found


@pytest.mark.parametrize(
    "name", ["README.md", "docs/examples/smtpd.conf", "fixtures/demo/smtpd.conf"]
)
def test_the_examples_are_fine(name: str, path: Path) -> None:
    text = (ROOT / name).read_text("utf-8")
    if name.endswith(".md"):
        text = text.partition("\n```\n")[2].partition("\n```\n")[0] + "\n"
    assert warnings(path, text) == []
    assert parse(path, text).programs


# -- whatever it is given --------------------------------------------------------------------

PIECES = [
    "filter",
    "proc",
    "proc-exec",
    "chain",
    "phase",
    "listen",
    "on",
    "include",
    "x",
    "f",
    "12",
]
PIECES += [
    '"',
    "'",
    "\\",
    "\n",
    " ",
    "{",
    "}",
    ",",
    "$",
    "$x",
    "=",
    "#",
    "-",
    "\t",
    '"a"',
    "\0",
    "é",
]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_it_reads_whatever_it_is_given(text: str) -> None:
    with NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        found = read(file.name, {"x": '"y'})
    assert all(problem.place.line >= 1 for problem in found.problems)
