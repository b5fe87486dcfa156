#!/usr/bin/env python3
"""make_completions [--check]: write packaging/completions/ from the declarations.

The files complete the arguments of smtpd-filters in bash, zsh and fish: verbs, their flags and
operands, and after `run NAME` the flags of the filter. With --check nothing is written, and the
exit status is 1 if a file is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from smtpd_filters.cli import VERBS, chain, load
from smtpd_filters.cli.listing import discover
from smtpd_filters.settings import ConversationSettings, common_options
from smtpd_filters.settings.declare import RESERVED
from smtpd_filters.settings.manual import describe
from smtpd_filters.supervise import program as supervise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.settings import Settings

HERE = Path(__file__).resolve().parent / "completions"
TOOL = "smtpd-filters"
#: The metavars of files.
_FILES = {"PATH", "FILE", "DIR"}
_RESERVED_HELP = ("Print the help and exit", "Print the version and exit")


class Flag(NamedTuple):
    """A flag with all its spellings."""

    spellings: tuple[str, ...]
    value: str  # its metavar; empty for a switch
    words: tuple[str, ...]  # the choices of its value, if limited
    files: bool  # whether its value is a file
    help: str
    repeats: bool = False


class Command(NamedTuple):
    """The possible arguments of a verb, or of `run` with a filter."""

    name: str
    summary: str
    flags: list[Flag]
    words: tuple[str, ...] = ()  # the choices of the first operand
    files: bool = False  # whether operands may be files
    command: bool = False  # whether a command may follow "--"


def flags(classes: Iterable[type[Settings]]) -> list[Flag]:
    """Return the flags of some settings, and those of all programs."""
    found = [
        Flag(
            each.flags,
            each.metavar,
            tuple(each.metavar.split("|")) if each.literal else (),
            each.metavar in _FILES,
            _sentence(each.help),
            each.repeats,
        )
        for cls in classes
        for each in describe(cls)
        if each.flags
    ]
    plain = zip(RESERVED, _RESERVED_HELP, strict=True)
    return [*found, *(Flag((flag,), "", (), False, said) for flag, said in plain)]  # noqa: FBT003


def _sentence(text: str) -> str:
    """Return the first sentence, up to its first semicolon."""
    for end in (". ", "; "):
        text = text.partition(end)[0]
    return text.rstrip(".")


def filters() -> list[Command]:
    """Return every filter, filter-chain and filter-supervise, as arguments of `run`."""
    found = [
        Command(
            cls.name,
            _sentence(cls.described()),
            flags([cls.Options, common_options(cls.outcomes(), cls.on_error, cls.deadline)]),
        )
        for cls in discover()[0]
    ]
    summary = "Run several filters in one process"
    found.append(Command("chain", summary, flags([chain.Options, chain.Common])))
    summary = "Run a filter program, and keep smtpd running whatever happens to it"
    found.append(Command("supervise", summary, flags([supervise.Options, ConversationSettings])))
    return sorted(found)


def verbs(names: tuple[str, ...]) -> list[Command]:
    """Return every verb; `names` are the names of filters."""
    found = []
    for verb in map(load, VERBS):
        operands = [each for each in describe(verb.options) if not each.flags]
        kinds = [each.kind for each in verb.options.options.values() if not each.flags]
        # An operand may show another metavar, such as ACTION, in place of its choices.
        words = tuple(kinds[0].metavar.split("|")) if kinds and kinds[0].literal else ()
        if any(each.metavar == "NAME" for each in operands):
            words = (*VERBS, *names) if verb.name == "help" else names
            if verb.name == "reload":  # the programs that it runs have names of their own
                words = tuple(each for each in names if each != "supervise")
        found.append(
            Command(
                verb.name,
                verb.summary,
                flags([verb.options]),
                words,
                any(each.metavar in _FILES for each in operands),
                verb.behind.startswith("COMMAND"),
            )
        )
    return found


def made() -> dict[str, str]:
    """Return the text of each file, by its path below `HERE`."""
    known = filters()
    every = verbs(tuple(each.name for each in known))
    return {
        f"bash/{TOOL}": bash(every, known),
        f"zsh/_{TOOL}": zsh(every, known),
        f"fish/{TOOL}.fish": fish(every, known),
    }


# -- bash --------------------------------------------------------------------------------------

BASH = """\
# bash completion for {tool}; made by packaging/make_completions.py

_smtpd_filters() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} word
    local context=${{COMP_WORDS[1]}} flags="" words="" kind=""
    COMPREPLY=()
    # "=" is a word of its own.
    [[ $cur == "=" ]] && cur=""
    [[ $prev == "=" ]] && prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "{verbs} --help --version" -- "$cur")
        return
    fi
    for word in "${{COMP_WORDS[@]:2:COMP_CWORD-2}}"; do
        [[ $word == "--" ]] && kind=command
    done
    if [[ $context == run ]] && ((COMP_CWORD > 2)); then
        context="run ${{COMP_WORDS[2]#filter-}}"
    fi
    if [[ $kind != command ]]; then
        case "$context $prev" in
{values}
        esac
        if [[ $kind == value ]]; then
            mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
            return
        fi
    fi
    if [[ -z $kind ]]; then
        case "$context" in
{contexts}
        esac
    fi
    if [[ $kind != command && $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$cur")
    elif [[ $kind == command ]]; then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        if [[ $kind == files ]]; then
            local -a found
            mapfile -t found < <(compgen -f -- "$cur")
            COMPREPLY+=("${{found[@]}}")
            compopt -o filenames 2>/dev/null
        fi
    fi
}}

complete -F _smtpd_filters {tool}
"""


def bash(every: list[Command], known: list[Command]) -> str:
    """Return the file for bash."""
    contexts = [(each.name, each) for each in every]
    contexts += [(f"run {each.name}", each) for each in known]
    values, words = [], []
    for name, each in contexts:
        for flag in each.flags:
            if flag.value:
                pattern = " | ".join(f'"{name} {spelling}"' for spelling in flag.spellings)
                kind = "kind=files" if flag.files else f'kind=value words="{" ".join(flag.words)}"'
                values.append(f"            {pattern}) {kind} ;;")
        shown = " ".join(spelling for flag in each.flags for spelling in flag.spellings)
        line = f'            "{name}") flags="{shown}"'
        if each.words:
            line += f' words="{" ".join(each.words)}"'
        words.append(f"{line}{' kind=files' if each.files else ''} ;;")
    return BASH.format(
        tool=TOOL,
        verbs=" ".join(each.name for each in every),
        values="\n".join(values),
        contexts="\n".join(words),
    )


# -- zsh ---------------------------------------------------------------------------------------

ZSH = """\
#compdef {tool}
# zsh completion for {tool}; made by packaging/make_completions.py

_{tool}() {{
    local curcontext=$curcontext state line
    local -a verbs=(
{verbs}
    )
    _arguments -C \\
        '(- *)'--help'[Print the help and exit]' \\
        '(- *)'--version'[Print the version and exit]' \\
        '1:verb:->verb' \\
        '*::argument:->argument'
    case $state in
    verb)
        _describe -t verbs verb verbs
        ;;
    argument)
        case $words[1] in
{arguments}
        esac
        ;;
    esac
}}

_{tool}-run() {{
    local state line
    local -a filters=(
{filters}
    )
    _arguments -C '1:filter:->filter' '*::flag:->flag'
    case $state in
    filter)
        _describe -t filters filter filters
        ;;
    flag)
        case ${{words[1]#filter-}} in
{flags}
        esac
        ;;
    esac
}}

_{tool} "$@"
"""


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_help(text: str) -> str:
    for char in "\\[]:":
        text = text.replace(char, f"\\{char}")
    return text


def _zsh_flag(flag: Flag) -> str:
    help_ = _zsh_help(flag.help)
    action = ""
    if flag.value:
        what = f"({' '.join(flag.words)})" if flag.words else "_files" if flag.files else " "
        action = f":{_zsh_help(flag.value.lower())}:{what}"
    # A long flag also takes its value after "=".
    names = [f"{s}=" if flag.value and s.startswith("--") else s for s in flag.spellings]
    if len(names) == 1:
        return _zsh_quoted(f"{'*' if flag.repeats else ''}{names[0]}[{help_}]{action}")
    excluded = _zsh_quoted("*" if flag.repeats else f"({' '.join(flag.spellings)})")
    return f"{excluded}{{{','.join(names)}}}{_zsh_quoted(f'[{help_}]{action}')}"


def _zsh_described(commands: list[Command]) -> str:
    return "\n".join(
        f"        {_zsh_quoted(f'{each.name}:{_zsh_help(each.summary)}')}" for each in commands
    )


def _zsh_case(each: Command) -> str:
    lines = [_zsh_flag(flag) for flag in each.flags]
    if each.words:
        lines.append(_zsh_quoted(f"1:word:({' '.join(each.words)})"))
    if each.files:
        lines.append(_zsh_quoted("*:file:_files"))
    joined = " \\\n                ".join(
        ["_arguments -S" if each.command else "_arguments", *lines]
    )
    return f"        {each.name})\n            {joined}\n            ;;"


def zsh(every: list[Command], known: list[Command]) -> str:
    """Return the file for zsh."""
    arguments = [
        f"        run)\n            _{TOOL}-run\n            ;;"
        if each.name == "run"
        else _zsh_case(each)
        for each in every
    ]
    return ZSH.format(
        tool=TOOL,
        verbs=_zsh_described(every),
        filters=_zsh_described(known),
        arguments="\n".join(arguments),
        flags="\n".join(map(_zsh_case, known)),
    )


# -- fish --------------------------------------------------------------------------------------

FISH = """\
# fish completion for {tool}; made by packaging/make_completions.py

function __smtpd_filters_context
    # The verb, or "run NAME"; nothing before it.
    set -l words (commandline -opc)
    set -e words[1]
    if test (count $words) -ge 2; and test $words[1] = run
        echo run (string replace -r '^filter-' '' -- $words[2])
    else if test (count $words) -ge 1
        echo $words[1]
    end
end

function __smtpd_filters_in
    set -l context (__smtpd_filters_context)
    test "$context" = "$argv"
end

complete -c {tool} -f
complete -c {tool} -n 'test -z (__smtpd_filters_context)' -l help -d 'Print the help and exit'
complete -c {tool} -n 'test -z (__smtpd_filters_context)' -l version -d 'Print the version and exit'
"""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_flag(flag: Flag) -> str:
    words = []
    for spelling in flag.spellings:
        if spelling.startswith("--"):
            words += ["-l", spelling[2:]]
        else:
            words += ["-s" if len(spelling) == 2 else "-o", spelling[1:]]
    if flag.files:
        words.append("-rF")
    elif flag.value:
        words += ["-x", "-a", _fish_quoted(" ".join(flag.words))] if flag.words else ["-x"]
    return " ".join([*words, "-d", _fish_quoted(flag.help)])


def fish(every: list[Command], known: list[Command]) -> str:
    """Return the file for fish."""
    lines = [FISH.format(tool=TOOL)]
    start = f"complete -c {TOOL} -n"
    first = f"{start} 'test -z (__smtpd_filters_context)' -a"
    lines += [f"{first} {each.name} -d {_fish_quoted(each.summary)}" for each in every]
    lines += [
        f"{start} '__smtpd_filters_in run' -a {each.name} -d {_fish_quoted(each.summary)}"
        for each in known
    ]
    contexts = [(each.name, each) for each in every]
    contexts += [(f"run {each.name}", each) for each in known]
    for name, each in contexts:
        condition = f"{start} '__smtpd_filters_in {name}'"
        if each.words and name != "run":
            lines.append(f"{condition} -a {_fish_quoted(' '.join(each.words))}")
        if each.files:
            lines.append(f"{condition} -F")
        lines += [f"{condition} {_fish_flag(flag)}" for flag in each.flags]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the files, or with --check only compare them."""
    check = "--check" in sys.argv[1:]
    stale = 0
    for name, text in made().items():
        path = HERE / name
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale = 1
        print(f"{name}: {'out of date' if check else 'written'}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main())
