"""The harness of a real smtpd before it starts one: what it checks, and the configuration."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.cli.smtpd_conf import read
from smtpd_filters.testing.server import CODE, Smtpd, filter_command, script_command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Arguments with what smtpd.conf(5) and the shell give a meaning to.
_MARKS = st.sampled_from("\\\"' \t$#{}a;*~`!\r")
ODD = st.text(
    _MARKS
    | st.characters(exclude_categories=["Cs"], exclude_characters="\n\0\x01\x02")
    | st.just("\udcff")
)


def argv(path: Path, command: str) -> Sequence[str]:
    """What the shell makes of the command that smtpd reads."""
    text = Smtpd(filters={"f": command}).configuration()
    path.write_text(text, "utf-8", "surrogateescape")
    [program] = read(str(path)).programs
    return shlex.split(program.command)


@given(arguments=st.lists(ODD))
def test_arguments_arrive_as_they_are(
    arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("conf") / "smtpd.conf"
    assert argv(path, filter_command("x", *arguments))[1:] == arguments


@pytest.mark.parametrize("command", ["x \\", "x 'a\nb'", "x \0", "x \x01", "x \x02"])
def test_what_smtpd_conf_cannot_say_is_refused(command: str) -> None:
    with pytest.raises(ValueError, match=r"^smtpd\.conf can't have "):
        Smtpd(filters={"f": command})


def test_a_script_must_be_there() -> None:
    command = script_command("sub/x.py", "-v")
    with pytest.raises(ValueError, match=r"^filters: f: files has no 'sub/x\.py'$"):
        Smtpd(filters={"f": command}, files={"x.py": ""})
    supervised = f"{filter_command('supervise')} -- {command}"
    with pytest.raises(ValueError, match="files has no"):
        Smtpd(filters={"f": supervised})
    for good in (command, script_command(f"{CODE}/x.py"), "x 'y"):
        Smtpd(filters={"f": good}, files={"sub/x.py": ""})
