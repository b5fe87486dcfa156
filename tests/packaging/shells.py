"""Completion in bash, zsh and fish, without a terminal: what they would offer for a line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: It completes the command of another program.
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
#: $1: bash-completion; $2: the directory of our files; then the words. Completes the last one.
BASH = """
if [[ -r $1 ]]; then source "$1"; fi
shift
compopt() { :; }  # refuses to work without a terminal
source "$1/${2##*/}"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE=$*
COMP_POINT=${#COMP_LINE}
_smtpd_filters
printf '%s\\n' "${COMPREPLY[@]}"
"""
#: $1: the directory of our files; $2: the line. Prints what is completed behind "+", then "END".
ZSH = """
zmodload zsh/zpty
export FUNCTIONS=$1 LINE=$2
cat > $HOME/start <<'EOF'
PROMPT=
fpath=($FUNCTIONS $fpath)
autoload -Uz compinit
compinit -u -d $HOME/functions
compadd() {
    local -a hits
    if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\\ * ]]; then
        builtin compadd -A hits "$@"
        print -rl -- "" +${^hits}
    fi
    builtin compadd "$@"
}
zle -C capture complete-word _main_complete
zle-line-init() { BUFFER=$LINE CURSOR=$#LINE; zle capture; print -l "" END; exit }
zle -N zle-line-init
EOF
zpty shell zsh -f -i
zpty -w shell 'source $HOME/start'
while zpty -r shell text; do
    print -rn -- $text
    [[ $text == *END$'\\r'* ]] && break
done
zpty -d shell
"""


def completing(shell: str, files: Path, words: Sequence[str]) -> list[str]:
    """The command that completes the last of the words with the files in this directory.

    It prints a line for each completion: zsh's begin with "+", and fish's have a description
    behind a tab. zsh notes in HOME which functions there are, for its next start there.
    """
    if shell == "bash":
        return ["bash", "-c", BASH, "bash", str(BASH_COMPLETION), str(files), *words]
    if shell == "zsh":
        return ["zsh", "-f", "-c", ZSH, "zsh", str(files), " ".join(words)]
    code = f"set -g fish_complete_path {files}; complete -C '{' '.join(words)}'"
    return ["fish", "--no-config", "-c", code]
