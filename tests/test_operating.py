"""The commands of docs/operating.md do what the page says, on configurations of this package."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operating.md").read_text("utf-8")
LISTS = r"""
# Chains {
FILTERS = "x"
filter "one" \
    proc-exec "filter-fcrdns \
        --action junk"
filter two proc-exec "filter-dyndns"
filter "both" chain { "one", two }
proc helper "filter-trace"
  filter checked phase connect match !rdns disconnect "550 No"
listen on socket filter two
listen on 127.0.0.1 filter { "one", two } port 2525
listen on 127.0.0.2 port 2526 \
    filter { "one",
        two } tag "filter"
listen on 127.0.0.3 \
    filter two
listen on 127.0.0.4 port 2525 filter \
    "one"
listen on 127.0.0.5 \
    filter \
    two \
    port 2525
action "out" relay filter "both" helo mail.example.org
match for any action "out"
"""


def command(begin: str) -> str:
    found: list[str] = [
        each
        for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        for each in re.findall(rf"^{begin} (?:.*\\\n)*.*\n", block, re.MULTILINE)
    ]
    assert len(found) == 1
    return found[0]


def statements(text: str) -> list[str]:
    """Return the statements of a smtpd.conf, each in one line."""
    joined = re.sub(
        r"\{[^}]*\}", lambda found: found[0].replace("\n", " "), text.replace("\\\n", " ")
    )
    return [line.strip() for line in joined.split("\n") if line and not line.startswith("#")]


@pytest.mark.parametrize("text", ["smtpd.conf", "submission.conf", LISTS])
def test_all_filters_off(text: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    example = ROOT / "docs" / "examples" / text if "\n" not in text else None
    before.write_text(example.read_text() if example else text)
    line = command("sed").replace("/etc/smtpd.conf.filters", str(before))
    subprocess.run(["/bin/sh", "-c", line.replace("/etc/smtpd.conf", str(after))], check=True)
    left = statements(after.read_text())
    assert not [each for each in left if re.search(r'\bfilter\b(?!"$)|proc-exec', each)]
    known = ("listen", "action", "match", "pki", "table")
    kept = [each for each in statements(before.read_text()) if each.startswith(known)]
    assert [each.split()[:3] for each in left if each.startswith(known)] == [
        each.split()[:3] for each in kept
    ]


def test_on_another_machine_the_journal_runs_before_the_check() -> None:
    """Without it `check --online` fails, so that the command would not start smtpd."""
    restored = PAGE.partition("tar -xzpf")[2].partition("```")[0]
    assert restored.index("enable --now smtpd-filters-journal") < restored.index("check --online")
