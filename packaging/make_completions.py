#!/usr/bin/env python3
"""make_completions [--check]: write packaging/completions/ from the declarations.

The files complete the arguments of all executables in bash, zsh and fish: verbs, their flags and
operands, the flags of filters, and the command of another program. With --check nothing is
written, and the exit status is 1 if a file is out of date.

Each shell has one file with everything, in which filter-NAME has the arguments of
`smtpd-filters run NAME`. bash and fish look for a file with the name of the command: those of the
filters only refer to the whole one.
"""

from __future__ import annotations

import sys
import textwrap
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

    from smtpd_filters.cli.verb import Verb
    from smtpd_filters.settings import Settings
    from smtpd_filters.settings.manual import OptionHelp

HERE = Path(__file__).resolve().parent / "completions"
TOOL = "smtpd-filters"
#: The metavars of files, and of what may be in one.
_FILES = {"PATH", "FILE", "DIR", "TABLE", "STORE"}
#: What follows the flags of filter-supervise, or the "--" of a verb.
COMMAND = "command"
_RESERVED_HELP = ("Print the help and exit", "Print the version and exit")


class Flag(NamedTuple):
    """A flag with all its spellings."""

    spellings: tuple[str, ...]
    help: str
    value: str = ""  # its metavar; empty for a switch
    words: tuple[str, ...] = ()  # the choices of its value, if limited
    files: bool = False  # whether its value is a file
    repeats: bool = False


class Command(NamedTuple):
    """The possible arguments of a verb, or of `run` with a filter."""

    name: str
    summary: str
    flags: list[Flag]
    words: tuple[str, ...] = ()  # the choices of the first operand
    files: bool = False  # whether operands may be files
    behind: str = ""  # what follows "--": COMMAND, or the flags of this filter
    leads: bool = False  # whether COMMAND begins with the first operand, also without "--"


def flags(classes: Iterable[type[Settings]]) -> list[Flag]:
    """Return the flags of some settings, and those of all programs."""
    found = [_flag(each) for cls in classes for each in describe(cls) if each.flags]
    plain = zip(RESERVED, _RESERVED_HELP, strict=True)
    return [*found, *(Flag((flag,), help=said) for flag, said in plain)]


def _flag(each: OptionHelp) -> Flag:
    values = each.metavar.split("|")
    words = tuple(value for value in values if value not in _FILES) if each.literal else ()
    files = not _FILES.isdisjoint(values)
    return Flag(each.flags, _sentence(each.help), each.metavar, words, files, each.repeats)


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
    own = flags([supervise.Options, ConversationSettings])
    found.append(Command("supervise", summary, own, behind=COMMAND, leads=True))
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
                _behind(verb),
            )
        )
    return found


def _behind(verb: Verb) -> str:
    """Return what follows the "--" of a verb."""
    if verb.others is not None:
        options = verb.others()
        [name] = [cls.name for cls in discover()[0] if cls.Options is options]
        return name
    return COMMAND if verb.behind.startswith("COMMAND") else ""


def _contexts(every: list[Command], known: list[Command]) -> list[tuple[str, Command]]:
    """Return all commands, by the words that they begin with: the verb, or "run NAME"."""
    return [
        *((each.name, each) for each in every),
        *((f"run {each.name}", each) for each in known),
    ]


def executables(known: Iterable[Command]) -> list[str]:
    """Return the names of the executables of filters."""
    return [f"filter-{each.name}" for each in known]


def made() -> dict[str, str]:
    """Return the text of each file, by its path below `HERE`."""
    known = filters()
    every = verbs(tuple(each.name for each in known))
    found = {
        f"bash/{TOOL}": bash(every, known),
        f"zsh/_{TOOL}": zsh(every, known),
        f"fish/{TOOL}.fish": fish(every, known),
    }
    for name in executables(known):
        found[f"bash/{name}"] = BASH_FILTER.format(tool=TOOL, name=name)
        short = name.removeprefix("filter-")
        found[f"fish/{name}.fish"] = FISH_FILTER.format(tool=TOOL, name=name, short=short)
    return found


# -- bash --------------------------------------------------------------------------------------

BASH = """\
# bash completion for {tool} and the filters; made by packaging/make_completions.py

_smtpd_filters() {{
    local -a line=("${{COMP_WORDS[@]}}")
    local index=$COMP_CWORD offset=0 at=2 context flags="" choices="" kind=""
    # Unset: if they are set, _comp_command_offset takes an index of words, not of COMP_WORDS.
    local words cword
    # filter-NAME has the arguments of "{tool} run NAME".
    if [[ ${{line[0]##*/}} == filter-* ]]; then
        line=({tool} run "${{line[0]##*/}}" "${{line[@]:1}}")
        index=$((index + 2)) offset=2
    fi
    local cur=${{line[index]}} prev=${{line[index - 1]}}
    COMPREPLY=()
    # "=" is a word of its own.
    [[ $cur == "=" ]] && cur=""
    [[ $prev == "=" ]] && prev=${{line[index - 2]}}
    if ((index == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "{verbs} --help --version" -- "$cur")
        return
    fi
    context=${{line[1]}}
    if [[ $context == run ]] && ((index > 2)); then
        context="run ${{line[2]#filter-}}"
        at=3
    fi
    # The command of another program begins at $at.
    case "$context" in
{behind}
    esac
    if [[ $kind == command ]]; then
        if ((at == index)); then
            mapfile -t COMPREPLY < <(compgen -W "{filters}" -c -d -- "$cur")
            compopt -o filenames 2>/dev/null
        elif declare -F _comp_command_offset >/dev/null; then
            _comp_command_offset $((at - offset))
        elif declare -F _command_offset >/dev/null; then
            _command_offset $((at - offset))
        fi
        return
    fi
    case "$context $prev" in
{values}
    esac
    if [[ -z $kind ]]; then
        case "$context" in
{contexts}
        esac
    fi
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$cur")
        if [[ $kind == files ]]; then
            local -a found
            mapfile -t found < <(compgen -f -- "$cur")
            COMPREPLY+=("${{found[@]}}")
            compopt -o filenames 2>/dev/null
        fi
    fi
}}

complete -F _smtpd_filters {tool} \\
    {executables}
"""

#: Behind "--" is a command.
BASH_COMMAND = """\
    "{name}")
        for ((; at < index; at++)); do
            [[ ${{line[at]}} == "--" ]] && ((at++)) && kind=command && break
        done
        ;;"""

#: Behind "--" are the flags of a filter.
BASH_FLAGS = """\
    "{name}")
        for ((; at < index; at++)); do
            [[ ${{line[at]}} == "--" ]] && context="run {behind}" && break
        done
        ;;"""

#: The first word that is neither a flag nor the value of one begins the command.
BASH_LEADS = """\
    "{name}")
        while ((at < index)); do
            case "${{line[at]}}" in
            --) ((at++)) && kind=command && break ;;
            {valued})
                ((at += 2))
                [[ ${{line[at - 1]}} == "=" ]] && ((at++))
                ;;
            -?*)
                ((at++))
                [[ ${{line[at]}} == "=" ]] && ((at += 2))
                ;;
            *) kind=command && break ;;
            esac
        done
        ((at == index)) && [[ $cur != -* ]] && kind=command
        ;;"""

BASH_FILTER = """\
# bash completion for {name}; made by packaging/make_completions.py
. "${{BASH_SOURCE[0]%/*}}/{tool}"
"""


def _valued(each: Command) -> list[str]:
    return [spelling for flag in each.flags if flag.value for spelling in flag.spellings]


def _bash_behind(name: str, each: Command) -> str:
    if each.leads:
        return BASH_LEADS.format(name=name, valued=" | ".join(_valued(each)))
    form = BASH_COMMAND if each.behind == COMMAND else BASH_FLAGS
    return form.format(name=name, behind=each.behind)


def _bash_choices(words: Iterable[str]) -> str:
    shown = " ".join(words)
    return f' choices="{shown}"' if shown else ""


def _bash_value(name: str, flag: Flag) -> str:
    pattern = " | ".join(f'"{name} {spelling}"' for spelling in flag.spellings)
    kind = "files" if flag.files else "value"
    return f"    {pattern}) kind={kind}{_bash_choices(flag.words)} ;;"


def _bash_context(name: str, each: Command) -> str:
    shown = " ".join(spelling for flag in each.flags for spelling in flag.spellings)
    files = " kind=files" if each.files else ""
    return f'        "{name}") flags="{shown}"{_bash_choices(each.words)}{files} ;;'


def bash(every: list[Command], known: list[Command]) -> str:
    """Return the file for bash."""
    contexts = _contexts(every, known)
    names = executables(known)
    return BASH.format(
        tool=TOOL,
        verbs=" ".join(each.name for each in every),
        filters=" ".join(names),
        executables=" \\\n    ".join(names),
        behind="\n".join(_bash_behind(name, each) for name, each in contexts if each.behind),
        values="\n".join(
            _bash_value(name, flag) for name, each in contexts for flag in each.flags if flag.value
        ),
        contexts="\n".join(_bash_context(name, each) for name, each in contexts),
    )


# -- zsh ---------------------------------------------------------------------------------------

ZSH = """\
#compdef {tool} {executables}
# zsh completion for {tool} and the filters; made by packaging/make_completions.py

_{tool}() {{
    if [[ ${{words[1]:t}} == filter-* ]]; then
        _{tool}-filter
        return
    fi
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
        _{tool}-filter
        ;;
    esac
}}

# The flags of a filter; its name is the first word.
_{tool}-filter() {{
    case ${{${{words[1]:t}}#filter-}} in
{flags}
    esac
}}

# One of some words, or a file.
_{tool}-or-file() {{
    _alternative "words:word:($*)" 'files:file:_files'
}}

# The command of another program.
_{tool}-command() {{
    if ((CURRENT == 1)); then
        _alternative 'filters:filter:({executables})' \\
            'commands:command:_command_names -e'
    else
        _normal
    fi
}}

_{tool} "$@"
"""

#: Behind "--" is a command.
ZSH_COMMAND = """\
if compset -N --; then
    _{tool}-command
    return
fi
"""

#: Behind "--" are the flags of a filter.
ZSH_FLAGS = """\
if compset -N --; then
    words=({behind} "$words[@]")
    ((CURRENT++))
    _{tool}-filter
    return
fi
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
        words = f"({' '.join(flag.words)})" if flag.words else ""
        if words and flag.files:
            words = f" _{TOOL}-or-file {' '.join(flag.words)}"
        action = f":{_zsh_help(flag.value.lower())}:{words or ('_files' if flag.files else ' ')}"
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
    start = "_arguments"
    lines = [_zsh_flag(flag) for flag in each.flags]
    if each.words:
        lines.append(_zsh_quoted(f"1:word:({' '.join(each.words)})"))
    if each.files:
        lines.append(_zsh_quoted("*:file:_files"))
    before = ""
    if each.leads:
        start = "_arguments -S -A '-*'"
        lines.append(_zsh_quoted(f"*:::command:_{TOOL}-command"))
    elif each.behind:
        form = ZSH_COMMAND if each.behind == COMMAND else ZSH_FLAGS
        before = form.format(tool=TOOL, behind=each.behind)
    return _zsh_branch(each.name, before + " \\\n    ".join([start, *lines]))


def _zsh_branch(name: str, text: str) -> str:
    return f"{name})\n{textwrap.indent(text, '    ')}\n    ;;"


def _zsh_indented(branches: Iterable[str], width: int) -> str:
    return textwrap.indent("\n".join(branches), " " * width)


def zsh(every: list[Command], known: list[Command]) -> str:
    """Return the file for zsh."""
    arguments = [
        _zsh_branch(each.name, f"_{TOOL}-run") if each.name == "run" else _zsh_case(each)
        for each in every
    ]
    return ZSH.format(
        tool=TOOL,
        executables=" ".join(executables(known)),
        verbs=_zsh_described(every),
        filters=_zsh_described(known),
        arguments=_zsh_indented(arguments, 8),
        flags=_zsh_indented(map(_zsh_case, known), 4),
    )


# -- fish --------------------------------------------------------------------------------------

FISH = """\
# fish completion for {tool} and the filters; made by packaging/make_completions.py

function __smtpd_filters_words
    # Print the verb, or "run NAME", and the words after it.
    set -l words (commandline -opc)
    set -e words[1]
    if set -q words[2]; and test $words[1] = run
        set words[2] "run "(string replace -r '^filter-' '' -- $words[2])
        set -e words[1]
    end
    set -q words[1]; and printf '%s\\n' $words
end

function __smtpd_filters_command
    # Whether the cursor is in the command of another program; print its words.
    set -l words (__smtpd_filters_words)
    set -l context $words[1]
    set -e words[1]
    switch "$context"
{commands}
        case '*'
            return 1
    end
    set -q words[1]; and printf '%s\\n' $words
    return 0
end

function __smtpd_filters_complete
    # Complete the command of another program.
    set -l words (__smtpd_filters_command)
    set -l token (commandline -ct)
    set -l filters {executables}
    if set -q words[1]
        set -l name (string replace -r '.*/' '' -- $words[1])
        # fish loads no completions of a program that is not in the PATH, as filters needn't be.
        contains -- $name $filters; and set words {tool} run $name $words[2..-1]
    else if string match -q -- '-*' "$token"
        return
    else
        string match -- "$token*" $filters
    end
    set words (string escape -- $words) "$token"
    complete -C "$words"
end

function __smtpd_filters_context
    # The verb, or "run NAME", or "command" in that of another program; nothing before the verb.
    if __smtpd_filters_command >/dev/null
        echo command
        return
    end
    set -l words (__smtpd_filters_words)
    echo $words[1]
end

function __smtpd_filters_in
    set -l context (__smtpd_filters_context)
    test "$context" = "$argv"
end

complete -c {tool} -f
complete -c {tool} -n 'test -z (__smtpd_filters_context)' -l help -d 'Print the help and exit'
complete -c {tool} -n 'test -z (__smtpd_filters_context)' -l version -d 'Print the version and exit'
complete -c {tool} -n '__smtpd_filters_in command' -a '(__smtpd_filters_complete)'
"""

#: Behind "--" is a command.
FISH_COMMAND = """\
        case '{name}'
            set -l at (contains -i -- -- $words)
            or return
            set -e words[1..$at]"""

#: Behind "--" are the flags of a filter.
FISH_FLAGS = """\
        case '{name}'
            set -l at (contains -i -- -- $words)
            or return
            set -e words[1..$at]
            set -p words filter-{behind}"""

#: The first word that is neither a flag nor the value of one begins the command.
FISH_LEADS = """\
        case '{name}'
            set -l flag
            while string match -qr -- '^-.' "$words[1]"
                set flag $words[1]
                set -e words[1]
                switch $flag
                    case --
                        break
                    case {valued}
                        set -e words[1]
                end
            end
            set -q words[1]; or test "$flag" = --; or return"""

FISH_FILTER = """\
# fish completion for {name}; made by packaging/make_completions.py
complete -c {name} -w '{tool} run {short}'
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
    if flag.value:
        words.append("-rF" if flag.files else "-x")
    if flag.words:
        words += ["-a", _fish_quoted(" ".join(flag.words))]
    return " ".join([*words, "-d", _fish_quoted(flag.help)])


def _fish_behind(name: str, each: Command) -> str:
    if each.leads:
        return FISH_LEADS.format(name=name, valued=" ".join(_valued(each)))
    form = FISH_COMMAND if each.behind == COMMAND else FISH_FLAGS
    return form.format(name=name, behind=each.behind)


def fish(every: list[Command], known: list[Command]) -> str:
    """Return the file for fish."""
    contexts = _contexts(every, known)
    lines = [
        FISH.format(
            tool=TOOL,
            executables=" ".join(executables(known)),
            commands="\n".join(_fish_behind(name, each) for name, each in contexts if each.behind),
        )
    ]
    start = f"complete -c {TOOL} -n"
    first = f"{start} 'test -z (__smtpd_filters_context)' -a"
    lines += [f"{first} {each.name} -d {_fish_quoted(each.summary)}" for each in every]
    lines += [
        f"{start} '__smtpd_filters_in run' -a {each.name} -d {_fish_quoted(each.summary)}"
        for each in known
    ]
    for name, each in contexts:
        condition = f"{start} '__smtpd_filters_in {name}'"
        if each.words and name != "run":
            lines.append(f"{condition} -a {_fish_quoted(' '.join(each.words))}")
        if each.files:
            lines.append(f"{condition} -F")
        if each.leads:
            lines.append(f"{condition} -a '(__smtpd_filters_complete)'")
        lines += [f"{condition} {_fish_flag(flag)}" for flag in each.flags]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the files, or with --check only compare them."""
    check = "--check" in sys.argv[1:]
    stale = 0
    texts = made()
    for path in HERE.glob("*/*"):
        name = str(path.relative_to(HERE))
        if name not in texts:
            stale = 1
            print(f"{name}: {'no longer made' if check else 'removed'}")
            if not check:
                path.unlink()
    for name, text in texts.items():
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
