"""The page in a browser, on a journal of a real server's traffic.

The journal files a story under the hour in which it gets it, by its own clock, and a filter dates
the story by its clock; nobody uses the time stamps of smtpd's events. So a day of traffic is played
with the clocks of the filters, the journal and the page moved from hour to hour, past midnight,
while all of them run; a process's deadlines and smtpd have the true clock. An hour is over when the
journal has written its stories.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import urlopen

import pytest
from selenium.webdriver.common.keys import Keys

from smtpd_filters.journal.query import Journal
from smtpd_filters.journal.states import MAX_EVENTS, MAX_TIME, Collected
from smtpd_filters.runtime.counters import BUCKETS as LOOKUP_BUCKETS
from smtpd_filters.runtime.counters import FAILURES, KINDS
from smtpd_filters.testing.server import scratch_path
from tests.cli.trials import made
from tests.data import ROOT
from tests.e2e.browser import Browser
from tests.e2e.moved_clock import MovedClock
from tests.e2e.sending import ALICE, BOB, DYNAMIC, GOOD, NAMELESS, ZONE, attempt, greeted
from tests.e2e.test_chain_file import CHAINS, command
from tests.e2e.test_journal import CHAIN, PATIENCE, SOCKET, TOOL, Kept
from tests.journal.made import stored
from tests.needed import need
from tests.stores.redis_server import free_port
from tests.web.test_page import HOSTILE
from tests.web.visitor import written

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

ACCEPTED, REFUSED = 5, 3
#: Sessions of the traffic that the page shows, and how often each kind of them comes.
SESSIONS = 60
#: The day of the traffic, and its hours; when in an hour the clock stands still.
BEGINNING, HOURS = datetime(2024, 2, 28, 12, tzinfo=UTC), 24
MINUTES = timedelta(minutes=30)
SHARES = {"accepted": 6, "junk": 2, "deferred": 2, "refused": 2, "abandoned": 1}
#: Files of recordings that take a while.
LONG = 280
PASSWORD = "correct horse"  # noqa: S105  # a test's
RULES = ROOT / "docs" / "examples" / "prometheus-rules.yml"
TRIED = f"""\
journal = "{SOCKET}"

[chain.inbound]
filters = ["recorder", "fcrdns", "helo"]

[filter.recorder]
use = "trace"
detail = "none"
record = "{scratch_path("sessions")}"

[filter.fcrdns]
require = "rdns"
verify = true
action = "reject"
"""
PICTURES = ROOT / "build" / "screenshots"


class Page:
    """`smtpd-filters web` on a journal."""

    def __init__(
        self, days: Path, *flags: str, environment: Mapping[str, str] | None = None
    ) -> None:
        words = [
            *TOOL,
            "web",
            "--directory",
            str(days),
            "--listen",
            f"127.0.0.1:{free_port()}",
            *flags,
        ]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"ready on (\S+)", line)
        assert found, line
        self.address = f"http://{found[1]}"

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    (tmp_path / "journal").mkdir()
    made = Kept(tmp_path / "journal")
    yield made
    made.process.kill()
    made.process.communicate()


class Played(NamedTuple):
    """A journal of a day's traffic, and how many sessions of each hour had each outcome."""

    kept: Kept
    hours: list[Counter[str]]

    @property
    def counts(self) -> Counter[str]:
        """The sessions of the day with each outcome."""
        return sum(self.hours, Counter())


@pytest.fixture
def played(start: Start, tmp_path: Path) -> Iterator[Played]:
    """Play a day of seeded traffic through a server, with one message a session."""
    chance = random.Random(26)  # noqa: S311  # for nothing secret
    hours: list[list[str]] = [[] for _ in range(HOURS)]
    for _ in range(SESSIONS):
        hours[chance.randrange(HOURS)] += chance.choices([*SHARES], [*SHARES.values()])
    (tmp_path / "journal").mkdir()
    with MovedClock(BEGINNING.timestamp()) as clock:
        kept = Kept(tmp_path / "journal", clock.environment)
        try:
            server = _serve(start, kept, clock)
            numbers = iter(range(SESSIONS))
            for at, kinds in enumerate(hours):
                clock.move((BEGINNING + timedelta(hours=at) + MINUTES).timestamp())
                for kind in kinds:
                    _send(server, kind, next(numbers))
                _wait_for_stories(kept, sum(map(len, hours[: at + 1])))
            days = sorted(each.name for each in kept.days.glob("*.sqlite"))
            assert days == ["2024-02-28.sqlite", "2024-02-29.sqlite"]
            found = Played(kept, [Counter(kinds) for kinds in hours])
            assert found.counts.keys() == SHARES.keys()
            assert min(found.counts.values()) > 1
            yield found
        finally:
            logged = kept.end()
        assert logged == ""


def _serve(start: Start, kept: Kept, clock: MovedClock | None = None) -> Smtpd:
    """Start a server whose filters write to a journal.

    They are one process: parts of a story that several send are counted apart if one is late.
    """
    ahead = clock.ahead if clock is not None else ""
    return start(
        zone=ZONE,
        files={CHAINS: f'{CHAIN}\n[filter.dyndns]\naction = "junk"\n'},
        filters={"chain": f"{ahead}{command('--chain', 'inbound')}"},
        binds={**kept.binds, **(clock.binds if clock is not None else {})},
    )


def _wait_for_stories(kept: Kept, count: int) -> None:
    """Wait until the journal has written so many stories."""
    last = (BEGINNING + timedelta(hours=HOURS)).timestamp()
    until = time.monotonic() + PATIENCE
    while True:
        written = Journal(str(kept.days)).overview(BEGINNING.timestamp(), last)
        found = sum(written.outcomes.values())
        if found == count:
            return
        assert found < count, written.outcomes
        assert time.monotonic() < until, written.outcomes
        time.sleep(0.05)


def _send(server: Smtpd, kind: str, number: int) -> None:
    """Be a client whose message has this outcome."""
    sender = f"s{number}@good.example"
    if kind == "accepted":
        assert attempt(server, GOOD, sender=sender).stage == ""
    elif kind == "junk":
        assert attempt(server, DYNAMIC, sender="news@dyn.example").stage == ""
    elif kind == "deferred":
        assert attempt(server, NAMELESS, recipients=[BOB]).code == 421
    elif kind == "refused":
        found = attempt(server, GOOD, sender="x@forged.example", helo="EHLO localhost")
        assert found.code == 550, found
    else:
        with server.connection(GOOD) as connection:
            greeted(connection).command("MAIL FROM:<x@late.example>")
            connection.command(f"RCPT TO:<{ALICE}>")


def test_the_page_in_a_browser(played: Played, tmp_path: Path) -> None:
    users = tmp_path / "users"
    added = [*TOOL, "web", "password", "ann", "--passwords", str(users)]
    subprocess.run(added, input=f"{PASSWORD}\n", text=True, capture_output=True, check=True)
    stores = _remembered(tmp_path)
    environment = played.kept.environment
    page = Page(played.kept.days, "--passwords", str(users), *stores, environment=environment)
    PICTURES.mkdir(parents=True, exist_ok=True)
    try:
        with Browser(tmp_path / "profile") as browser:
            _log_in(browser, page.address)
            _read_overview(browser, played)
            _search_refused_mail(browser, played.hours)
            _follow_live(browser, page.address)
            _walk_by_keys(browser, page.address)
            _look_at_all_sizes(browser, page.address)
            browser.click("Log out")
            browser.wait("Password")
            browser.go(f"{page.address}/search")
            browser.wait("Password")
            assert browser.errors() == []
    finally:
        page.end()


def _remembered(tmp_path: Path) -> list[str]:
    """Let a client in and block a user; return the flags of the stores."""
    flags = ["--store-timeout", "30"]
    for name, words in (
        ("greylist", ("greylist", "allow", "192.0.2.7")),
        ("limits", ("limit", "block", "user=alice")),
    ):
        store = f"sqlite:{tmp_path}/{name}.sqlite"
        (tmp_path / f"{name}.sqlite").touch()
        subprocess.run([*TOOL, *words, "--store", store], capture_output=True, check=True)
        flags += [f"--{name}", store]
    return flags


def _log_in(browser: Browser, address: str) -> None:
    browser.go(f"{address}/")
    browser.wait("Password")
    assert browser.violations() == []
    browser.type("user", "ann")
    browser.type("password", "wrong")
    browser.click("Log in")
    browser.wait("Wrong user or password")
    # The status of that page is in the console.
    assert len([each for each in browser.errors() if "403" in each]) == 1
    browser.type("user", "ann")
    browser.type("password", PASSWORD)
    browser.click("Log in")
    browser.wait("Overview", "h1")


def _read_overview(browser: Browser, played: Played) -> None:
    words = browser.text("figcaption")
    assert f"{played.counts['accepted']} accepted" in words
    _compare_chart(browser, "messages", played.hours)
    # Of each session that was refused or marked, one decision; the others let it pass.
    acted = [
        +Counter(junk=each["junk"], refused=each["deferred"] + each["refused"])
        for each in played.hours
    ]
    _compare_chart(browser, "decisions", acted)
    browser.click("The numbers")
    assert browser.run("return document.querySelector('details').open")


def _compare_chart(browser: Browser, chart: str, hours: list[Counter[str]]) -> None:
    """Compare a chart and its table with the numbers of each hour by their class."""
    bars = browser.run(
        "const bars = document.querySelectorAll(`[aria-labelledby^=${arguments[0]}-] rect.bar`);"
        "return [...bars].map(each => ["
        "...each.querySelector('title').textContent.match(/^(.*): (\\d+) /).slice(1),"
        "each.classList[1], Number(each.getAttribute('x')), Number(each.getAttribute('height'))])",
        chart,
    )
    sent = {_label(at): dict(counts) for at, counts in enumerate(hours) if counts}
    drawn: dict[str, dict[str, int]] = {}
    for label, count, kind, _, _ in bars:
        drawn.setdefault(label, {})[kind] = int(count)
    assert drawn == sent
    # What is seen: hours from left to right, and equal heights for equal numbers.
    places = {label: x for label, _, _, x, _ in bars}
    assert [places[label] for label in sent] == sorted({x for *_, x, _ in bars})
    heights = [height / int(count) for _, count, _, _, height in bars]
    assert max(heights) - min(heights) < 0.2, heights
    kinds, rows = browser.run(
        "const svg = document.querySelector(`[aria-labelledby^=${arguments[0]}-]`);"
        "const legend = svg.closest('figure').nextElementSibling;"
        "const rows = legend.nextElementSibling.querySelectorAll('tbody tr');"
        "return [[...legend.querySelectorAll('.key')].map(each => each.classList[1]),"
        "[...rows].map(row => [...row.cells].map(cell => cell.textContent))]",
        chart,
    )
    # The last 24 hours begin within an hour.
    assert rows == [
        [_label(at), *(str(hours[at][kind]) if at >= 0 else "0" for kind in kinds)]
        for at in range(-1, HOURS)
    ]
    assert sum(hours, Counter()).keys() <= set(kinds)


def _label(at: int) -> str:
    """Return what the chart calls an hour of the traffic."""
    return f"{BEGINNING + timedelta(hours=at):%a %H:%M}"


def _search_refused_mail(browser: Browser, hours: list[Counter[str]]) -> None:
    browser.click("Messages")
    browser.wait("Messages", "h1")
    browser.type("q", NAMELESS)
    browser.click("Search")
    # The page before has the accepted mail as well.
    browser.wait(NAMELESS, "main")
    until = time.monotonic() + PATIENCE
    while "q=" not in browser.run("return location.search"):
        assert time.monotonic() < until
        time.sleep(0.05)
    times = browser.run(
        "return [...document.querySelectorAll('tbody time')].map(each => each.dateTime)"
    )
    assert times[::-1] == [
        (BEGINNING + timedelta(hours=at) + MINUTES).isoformat()
        for at, counts in enumerate(hours)
        for _ in range(counts["deferred"])
    ]
    browser.run("document.querySelector('tbody a').click()")
    told = browser.wait("fcrdns decided at connect", "main")
    assert NAMELESS in told


def _follow_live(browser: Browser, address: str) -> None:
    browser.go(f"{address}/live")
    browser.wait("Connected", "[data-state]")
    assert ALICE in browser.text("table")


def _walk_by_keys(browser: Browser, address: str) -> None:
    """The first key leads past the navigation; links are followed by Enter."""
    browser.go(f"{address}/")
    assert browser.press(Keys.TAB) == "Skip to the content"
    browser.press(Keys.ENTER)
    assert browser.address.endswith("#main")
    browser.go(f"{address}/")
    links = [browser.press(Keys.TAB) for _ in range(4)]
    assert links[-1] == "Messages", links
    browser.press(Keys.ENTER)
    browser.wait("Messages", "h1")


def _look_at_all_sizes(browser: Browser, address: str) -> None:
    paths = ["/", "/search", "/live", "/greylist", "/limits"]
    paths += [f"/ranked/{kind}" for kind in ("senders", "clients", "users")]
    browser.go(f"{address}/search")
    paths.append(browser.run("return document.querySelector('tbody a').pathname"))
    for width, height in ((390, 844), (1400, 900)):
        browser.resize(width, height)
        for path in paths:
            for dark in (True, False):
                browser.darken(dark=dark)
                browser.go(address + path)
                back = browser.run("return getComputedStyle(document.body).backgroundColor")
                assert (back == "rgb(255, 255, 255)") is not dark
                assert browser.violations() == [], (width, path, dark)
            # Only tables and charts scroll, each in itself.
            assert browser.run("return document.documentElement.scrollWidth") <= width, path
        browser.go(f"{address}/")
        browser.driver.save_screenshot(str(PICTURES / f"overview-{width}.png"))
    assert browser.errors() == []


def test_settings_are_tried_in_a_browser(start: Start, kept: Kept, tmp_path: Path) -> None:
    server = start(
        zone=ZONE,
        files={CHAINS: TRIED},
        filters={"chain": command("--chain", "inbound")},
        binds=kept.binds,
    )
    for number in range(ACCEPTED):
        assert attempt(server, GOOD, sender=f"s{number}@good.example").stage == ""
    for _ in range(REFUSED):
        assert attempt(server, NAMELESS, recipients=[BOB]).stage
    kept.why("@good.example", ACCEPTED)
    kept.why(NAMELESS, REFUSED)
    chain = tmp_path / "chain.toml"
    chain.write_text(TRIED)
    recordings = server.path(scratch_path("sessions"))
    page = Page(kept.days, "--try", str(chain), "--recordings", str(recordings))
    PICTURES.mkdir(parents=True, exist_ok=True)
    try:
        with Browser(tmp_path / "profile") as browser:
            _try_settings(browser, page.address)
            _try_what_is_not_offered(browser, page.address)
    finally:
        page.end()
    assert chain.read_text() == TRIED


def _try_settings(browser: Browser, address: str) -> None:
    browser.resize(1400, 900)
    browser.go(f"{address}/search?q={NAMELESS}")
    browser.run("document.querySelector('tbody a').click()")
    browser.wait("fcrdns decided at connect", "main")
    browser.click("Try this against other settings")
    browser.wait("Try other settings", "h1")
    # The table of the filter that decided is open.
    assert browser.text("details[open] summary") == "[filter.fcrdns]"
    form = browser.address
    browser.run(
        "const dry = document.querySelector(\"details[open] [name='set.dry-run']\");"
        "dry.value = 'true'; dry.form.querySelector('button').click()"
    )
    told = browser.wait("Nothing has been changed", "main")
    assert f"{REFUSED} of {ACCEPTED + REFUSED} messages differ." in told
    # What the filter asked is in the recordings.
    assert "not certain" not in told
    assert "[filter.fcrdns]\ndry-run = true" in told
    rows = browser.run(
        "return [...document.querySelectorAll('tbody tr')].map("
        "row => [...row.cells].map(cell => cell.innerText))"
    )
    assert len(rows) == REFUSED
    assert "this message" in rows[0][0]
    for row in rows:
        assert row[3] == NAMELESS
        assert "refused at connect" in row[4]
        assert "no longer refused" in row[5]
    result = browser.address
    for width, height in ((390, 844), (1400, 900)):
        browser.resize(width, height)
        for path in (form, result):
            browser.go(path)
            browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
            assert browser.violations() == [], (width, path)
            assert browser.run("return document.documentElement.scrollWidth") <= width, path
        browser.driver.save_screenshot(str(PICTURES / f"trial-{width}.png"))
    assert browser.errors() == []


def _try_what_is_not_offered(browser: Browser, address: str) -> None:
    """Change the form, as a stranger would."""
    for name, value, text in (
        ("set.nameserver", "192.0.2.1", "is no setting that can be tried"),
        ("set.use", "/tmp/evil.py", "is no setting that can be tried"),  # noqa: S108  # not ours
        ("set.action", "file:/etc/passwd", "action: invalid choice"),
    ):
        browser.go(f"{address}/try")
        browser.run(
            "const [name, value] = arguments;"
            "const form = document.querySelector('[value=fcrdns]').form;"
            "for (const each of form.querySelectorAll('[name^=set]')) each.remove();"
            "const field = document.createElement('input');"
            "field.name = name; field.value = value; form.append(field);"
            "form.querySelector('button').click()",
            name,
            value,
        )
        browser.wait(text, "main")
    # The status of these pages is in the console.
    assert all("422" in each for each in browser.errors())


def test_a_trial_that_runs(tmp_path: Path) -> None:
    tried = made(tmp_path)
    [recorded] = tried.recordings.iterdir()
    for number in range(LONG):
        shutil.copy(recorded, tried.recordings / f"{number}.session")
    flags = "--try", str(tried.chain), "--recordings", str(tried.recordings)
    page = Page(tried.journal, *flags)
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.resize(390, 844)
            browser.go(f"{page.address}/try")
            browser.run(
                "const field = document.querySelector(\"[name='set.junk-at']\");"
                "field.value = '2.5'; field.form.querySelector('button').click()"
            )
            assert "It runs" in browser.wait("The result appears here", "main")
            browser.run("window.loaded = true")
            assert browser.violations() == []
            until = time.monotonic() + PATIENCE
            while "It runs: 0" in browser.text("[data-progress]"):
                assert time.monotonic() < until
                time.sleep(0.1)
            assert browser.run("return window.loaded") is True
            browser.click("Cancel")
            browser.wait("Cancelled", "main")
            assert browser.violations() == []
            # The status of this page is in the console.
            assert all("422" in each for each in browser.errors())
    finally:
        page.end()


def test_what_clients_write_stays_text(tmp_path: Path) -> None:
    row = ["dnsbl", "connect", "reject", 3, 1500, 1, 0, "", "", "", 0, "", ""]
    now = time.time()
    stories = []
    for number, text in enumerate(HOSTILE):
        row = [*row[:7], text, f"550 {text}", text, 0, "", text]
        facts: dict[str, Any] = {
            "f": f"{text}@example.org", "r": [[text, 2]], "i": text, "j": text, "u": [text, text],
            "h": ["EHLO", text], "c": ["192.0.2.1:1", text, "pass", ""], "a": [f"550 {text}"],
            "l": text, "t": int(now * 1000) - number,
        }  # fmt: skip
        stories.append(stored(number, [row], e="rollback", **facts))
    written(tmp_path, stories, now)
    page = Page(tmp_path)
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.go(f"{page.address}/search")
            links = browser.run(
                "return [...document.querySelectorAll('tbody a')].map(a => a.pathname)"
            )
            assert len(links) == len(HOSTILE)
            for path in ("/", "/search", "/ranked/senders", "/ranked/users", "/live", *links):
                browser.go(page.address + path)
                assert browser.run("return document.images.length") == 0
                assert browser.run("return document.querySelectorAll('script').length") <= 1
            assert browser.errors() == []
    finally:
        page.end()


def test_what_happens_now(tmp_path: Path) -> None:
    """The states of many processes, with the longest and most hostile names."""
    now = Collected()
    failures = dict.fromkeys(FAILURES, MAX_EVENTS)
    times = [MAX_TIME, [MAX_EVENTS] * (len(LOOKUP_BUCKETS) + 1), failures]
    for number, text in enumerate(HOSTILE):
        label = (text + 80 * "x")[-80:]
        now.add(
            {
                "p": f"{'p' * 50}{number}", "n": f"{number:x}", "a": 0, "o": MAX_EVENTS,
                "r": MAX_EVENTS, "x": MAX_EVENTS, "q": dict.fromkeys(KINDS, times),
                "b": [["dns", label, 1], ["redis", text, 1], ["clamd", "192.0.2.1:3310", 0]],
            }
        )  # fmt: skip
    now.write(str(tmp_path), {}, 0.0)
    page = Page(tmp_path)
    PICTURES.mkdir(parents=True, exist_ok=True)
    try:
        with Browser(tmp_path / "profile") as browser:
            for width, height in ((390, 844), (1400, 900)):
                browser.resize(width, height)
                browser.go(f"{page.address}/")
                assert "Passed over, since they fail repeatedly" in browser.text("main")
                assert browser.violations() == [], width
                assert browser.run("return document.documentElement.scrollWidth") <= width
                assert browser.run("return document.images.length") == 0
                browser.run("document.querySelector('[aria-label=Processes]').scrollIntoView()")
                browser.driver.save_screenshot(str(PICTURES / f"now-{width}.png"))
            assert browser.errors() == []
    finally:
        page.end()


def test_promtool_finds_no_fault(start: Start, kept: Kept) -> None:
    promtool = shutil.which("promtool")
    need("not installed: promtool, of the package prometheus" if promtool is None else None)
    assert promtool is not None
    server = _serve(start, kept)
    for number, kind in enumerate(SHARES):
        _send(server, kind, number)
    kept.why("@late.example")
    page = Page(kept.days)
    try:
        with urlopen(f"{page.address}/metrics", timeout=PATIENCE) as response:  # noqa: S310  # ours
            text = response.read()
    finally:
        page.end()
    assert b"smtpd_filters_messages_total" in text
    for words, given in (
        ((promtool, "check", "metrics"), text),
        ((promtool, "check", "rules", str(RULES)), b""),
    ):
        checked = subprocess.run(words, input=given, capture_output=True, check=False)
        assert checked.returncode == 0, checked
        assert checked.stderr == b""
