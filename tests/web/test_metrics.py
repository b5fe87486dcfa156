from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from smtpd_filters.journal.process_state import ProcessState
from smtpd_filters.journal.query import Journal, Mark
from smtpd_filters.journal.records import Passing, Totals
from smtpd_filters.journal.states import FILE, Collected
from smtpd_filters.runtime.counters import TIMEOUT, Counters
from smtpd_filters.web.guard import Access
from smtpd_filters.web.metrics import MOST, MOST_FILES, Counts, Metrics
from smtpd_filters.web.passwords import Passwords
from tests.data import ROOT
from tests.journal.made import DAY, NOON, PASSED, refused, stored
from tests.journal.test_states import Process, Servers
from tests.needed import need

from .visitor import Visitor, visit, written

EXAMPLES = ROOT / "docs" / "examples"
FAILED = [
    "rspamd",
    "message",
    "reject",
    9,
    60_000_000,
    1,
    0,
    "timeout",
    "451 4.3.0 Later",
    "",
    0,
    "f",
]


def totals(count: int, name: str = "dnsbl", verb: str = "reject", seconds: float = 1.0) -> Totals:
    buckets = [0] * 11 + [count]
    return Totals(
        {"refused": count}, [Passing(name, "connect", verb, count, seconds, 1.0, buckets)]
    )


def test_counters_start_at_zero_and_only_grow() -> None:
    counts = Counts()
    counts.look({"a": totals(5)})
    assert counts.outcomes["refused"] == 0
    counts.look({"a": totals(7), "b": totals(2)})
    assert counts.outcomes["refused"] == 4
    # The oldest file is purged, and another one was begun again.
    counts.look({"b": totals(1)})
    assert counts.outcomes["refused"] == 5
    counts.look({"b": totals(3), "c": totals(1)})
    assert counts.outcomes["refused"] == 8
    [count] = counts.verdicts.values()
    assert count == 8
    [(_, buckets)] = counts.times.values()
    assert sum(buckets) == 8


def test_a_file_that_was_unreadable_for_a_while_is_not_counted_again() -> None:
    counts = Counts()
    counts.look({"a": totals(5)})
    counts.look({})
    counts.look({"a": totals(6)})
    assert counts.outcomes["refused"] == 1
    for number in range(100):
        counts.look({f"b{number:02}": totals(1)}, ["a"])
    assert counts.outcomes["refused"] == 101
    assert counts._seen is not None
    assert len(counts._seen) == MOST_FILES
    counts.look({"a": totals(8)}, ["a"])
    counts.look({"a": totals(9)}, ["a"])
    assert counts.outcomes["refused"] == 102
    assert not counts._known


def test_an_old_file_that_is_written_to_again_is_not_a_new_one() -> None:
    counts = Counts()
    counts.look({"c": totals(5)}, ["a", "b", "c"])
    counts.look({"c": totals(5), "b": totals(1000)}, ["a", "b", "c"])
    assert counts.outcomes["refused"] == 0
    counts.look({"c": totals(5), "b": totals(1001)}, ["a", "b", "c"])
    counts.look({"d": totals(1), "b": totals(1001)}, ["b", "c", "d"])
    assert counts.outcomes["refused"] == 2
    assert not counts._known


def test_more_files_than_are_remembered_are_counted_once() -> None:
    counts = Counts()
    counts.look({}, [])
    many = {f"{number:02}": totals(1) for number in range(MOST_FILES + 5)}
    for _ in range(3):
        counts.look(many, many)
        assert counts.outcomes["refused"] == len(many)
    counts.look({"00": totals(3)}, many)
    counts.look({"00": totals(4)}, many)
    assert counts.outcomes["refused"] == len(many) + 1


def test_a_clock_that_was_ahead_does_not_end_the_counts(tmp_path: Path) -> None:
    metrics = Metrics()
    for days in (0, 3, 5):
        written(tmp_path, [stored(1)], NOON + days * DAY)
    for at, path in enumerate(sorted(tmp_path.glob("*.sqlite"))):
        os.utime(path, (NOON + at * DAY,) * 2)
    metrics.look(Journal(str(tmp_path)))
    for number in (2, 3):
        written(tmp_path, [stored(number)], NOON + number)
        metrics.look(Journal(str(tmp_path)))
    assert metrics.counts.outcomes["accepted"] == 1  # of the other, the file was not known yet


def test_scrapers_at_the_same_time_count_everything_once() -> None:
    """The sums that one reads are older than those of the other, which is done earlier."""
    numbers = iter(range(1, 1000))
    reading = Event()

    class Slow:
        unread: ClassVar[dict[str, str]] = {}

        def totals(self, _marks: dict[str, Mark]) -> dict[str, Totals]:
            found = {"a": totals(next(numbers))}
            reading.wait(0.02)
            return found

        def extent(self) -> None:
            return None

        def states(self) -> None:
            return None

    metrics = Metrics()
    metrics.look(Slow())  # type: ignore[arg-type]
    with ThreadPoolExecutor(4) as pool:
        scrapes = [pool.submit(metrics.scrape, Slow(), "") for _ in range(20)]  # type: ignore[arg-type]
        for each in scrapes:
            each.result()
    assert metrics.counts.outcomes["refused"] == 20


def test_series_are_bounded() -> None:
    counts = Counts()
    counts.look({})
    for number in range(MOST + 10):
        counts.look({str(number): totals(1, f"f{number}")})
    assert len(counts.verdicts) == MOST
    assert counts.left_out == 10


async def scraped(visitor: Visitor, **headers: str) -> tuple[int, str]:
    async with visitor.session.get(f"{visitor.base}/metrics", headers=headers) as response:
        return response.status, await response.text()


def values(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_was_counted_since_the_start(tmp_path: Path) -> None:
    now = time.time()
    at: dict[str, Any] = {"t": int((now - 60) * 1000)}
    written(tmp_path, [stored(1, **at)], now)

    async def visiting(visitor: Visitor) -> None:
        assert values((await scraped(visitor))[1])["smtpd_filters_messages_total", "accepted"] == 0
        stories = [stored(2, **at), refused(3, **at)]
        written(tmp_path, [*stories, stored(4, [PASSED, FAILED], e="rollback", **at)], now)
        status, text = await scraped(visitor)
        assert status == 200
        found = values(text)
        assert found["smtpd_filters_messages_total", "accepted"] == 1
        assert found["smtpd_filters_messages_total", "refused"] == 1
        verdicts = "smtpd_filters_verdicts_total"
        assert found[verdicts, "dnsbl", "connect", "applied", "reject"] == 1
        assert found[verdicts, "rspamd", "message", "failed", "reject"] == 1
        seconds = "smtpd_filters_verdict_duration_seconds"
        assert found[f"{seconds}_count", "rspamd", "message"] == 1
        assert found[f"{seconds}_sum", "rspamd", "message"] == pytest.approx(60)
        assert found[f"{seconds}_bucket", "rspamd", "30.0", "message"] == 0
        assert found["smtpd_filters_journal_unread_files",] == 0
        # No address, user or reason is a label.
        assert not re.search(r"example|192\.0|timeout", text)

    visit(tmp_path, visiting)


def test_formats(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        for accept, ending in (("text/plain", "\n"), ("application/openmetrics-text", "# EOF\n")):
            _, text = await scraped(visitor, Accept=accept)
            assert text.endswith(ending)
            assert "smtpd_filters_build_info" in text

    visit(tmp_path, visiting)


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=a.b", "text/plain;version=1e9", ";;;;", "\xff",
        "text/plain;version=", "application/openmetrics-text;version=1.0.0;escaping=zzz",
    ],
)  # fmt: skip
def test_any_wish_for_a_format_is_answered(accept: str, tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        status, text = await scraped(visitor, Accept=accept)
        assert status == 200
        assert "smtpd_filters_build_info" in text

    visit(tmp_path, visiting)


def test_a_token_reads_metrics_alone(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        named = {"Authorization": "Bearer opensesame"}
        assert (await scraped(visitor, **named))[0] == 200
        for wrong in ("Bearer opensesam", "Bearer ", "Basic opensesame", "opensesame"):
            status, text = await scraped(visitor, Authorization=wrong)
            assert (status, "--metrics-token" in text) == (401, True)
        async with visitor.session.get(f"{visitor.base}/", headers=named) as response:
            assert "Log in" in await response.text()

    visit(tmp_path, visiting, Access(passwords=Passwords({}), token="opensesame"))  # noqa: S106  # a test's


def test_no_token_is_no_token(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        for wrong in ("Bearer ", "Bearer"):
            assert (await scraped(visitor, Authorization=wrong))[0] == 401

    visit(tmp_path, visiting, Access(passwords=Passwords({})))


def collected(directory: Path, name: str = "filter-chain") -> None:
    """Write the file of a journal to which a process has sent its state."""
    found = Collected()
    counters = Counters()
    servers = Servers("192.0.2.53:53", is_open=True)
    counters.watch("dns", servers)
    found.states({})
    counters.of("dns").ended(0.002)
    counters.of("dns").ended(12.0, TIMEOUT)
    process = Process(found, name)
    process.state = ProcessState(process.sent, name, counters)  # type: ignore[arg-type]
    process.sent.dropped = 3
    process.send(5, 2)
    found.write(str(directory), {"invalid": 4, "received": 9}, 0.0)


def test_states_of_processes(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        found = values((await scraped(visitor))[1])
        assert found["smtpd_filters_journal_up",] == 0
        collected(tmp_path)
        _, text = await scraped(visitor)
        found = values(text)
        assert found["smtpd_filters_journal_up",] == 1
        seconds = "smtpd_filters_lookup_duration_seconds"
        assert found[f"{seconds}_count", "dns"] == 2
        assert found[f"{seconds}_sum", "dns"] == pytest.approx(12.002)
        assert found[f"{seconds}_bucket", "dns", "0.0025"] == 1
        assert found[f"{seconds}_bucket", "dns", "10.0"] == 1
        failures = "smtpd_filters_lookup_failures_total"
        assert found[failures, "timeout", "dns"] == 1
        assert found[failures, "invalid", "dns"] == 0
        assert found["smtpd_filters_open_sessions", "filter-chain"] == 5
        assert found["smtpd_filters_program_ends_total", "filter-chain"] == 2
        assert found["smtpd_filters_journal_events_dropped_total", "filter-chain"] == 3
        assert found["smtpd_filters_journal_events_lost_total", "invalid"] == 4
        assert found["smtpd_filters_journal_events_lost_total", "overflow"] == 0
        assert found["smtpd_filters_server_passed_over", "dns", "192.0.2.53:53"] == 1
        # The journal has stopped: its counters stay, what was open is unknown.
        old = json.loads((tmp_path / FILE).read_text("utf-8"))
        (tmp_path / FILE).write_text(json.dumps(old | {"at": old["at"] - 1000}), "utf-8")
        found = values((await scraped(visitor))[1])
        assert found["smtpd_filters_journal_up",] == 0
        assert found[f"{seconds}_count", "dns"] == 2
        assert ("smtpd_filters_open_sessions", "filter-chain") not in found
        assert ("smtpd_filters_server_passed_over", "dns", "192.0.2.53:53") not in found

    visit(tmp_path, visiting)


def test_the_overview_shows_this_moment(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        assert "The journal does not run" in (await visitor.get("/")).text
        collected(tmp_path)
        text = " ".join((await visitor.get("/")).text.split())
        assert "The journal does not run" not in text
        assert "Passed over, since they fail repeatedly: 192.0.2.53:53 (dns)" in text
        assert "dns26 swithin 30 s1no answer in time: 1" in text
        assert "filter-chain523" in text
        collected(tmp_path, "<script>alert(1)</script>")
        await visitor.get("/")  # nothing active

    visit(tmp_path, visiting)


def needs_promtool() -> str:
    promtool = shutil.which("promtool")
    need("not installed: promtool, of the package prometheus" if promtool is None else None)
    assert promtool is not None
    return promtool


@pytest.mark.e2e
def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    promtool = needs_promtool()
    rules = EXAMPLES / "prometheus-rules.yml"
    tests = Path(__file__).with_name("prometheus-rules.test.yml").read_text("utf-8")
    given = tmp_path / "test.yml"
    given.write_text(tests.replace("RULES", str(rules)), "utf-8")
    ran = subprocess.run((promtool, "test", "rules", given), capture_output=True, check=False)
    assert ran.returncode == 0, ran
    alerts = {
        rule["alert"]
        for group in yaml.safe_load(rules.read_text("utf-8"))["groups"]
        for rule in group["rules"]
    }
    fired = {
        each["alertname"]
        for test in yaml.safe_load(tests)["tests"]
        for each in test["alert_rule_test"]
        if each["exp_alerts"]
    }
    assert fired == alerts


@pytest.mark.e2e
def test_promtool_finds_no_fault_in_the_exposition(tmp_path: Path) -> None:
    promtool = needs_promtool()
    collected(tmp_path)
    metrics = Metrics()
    text, _ = metrics.scrape(Journal(str(tmp_path)), "")
    words = (promtool, "check", "metrics")
    ran = subprocess.run(words, input=text, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")


def names(text: str) -> set[str]:
    """The metrics in an expression."""
    found = re.findall(r"smtpd_filters_\w+", text)
    return {re.sub(r"_(total|bucket|sum|count)$", "", each) for each in found}


def exposed() -> set[str]:
    """The metrics that the page has."""
    from smtpd_filters.web.metrics import Metrics

    return {re.sub(r"_total$", "", each.name) for each in Metrics().collect()}


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    board = json.loads((EXAMPLES / "grafana-dashboard.json").read_text("utf-8"))
    asked = [each["expr"] for panel in board["panels"] for each in panel.get("targets", [])]
    assert len(asked) >= 6
    assert set().union(*map(names, asked)) <= exposed()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_alerts_ask_for_metrics_that_exist() -> None:
    rules = yaml.safe_load((EXAMPLES / "prometheus-rules.yml").read_text("utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) >= 4
    for each in alerts:
        assert names(each["expr"]) <= exposed()
        assert each["annotations"]["summary"]


def test_a_file_that_could_not_be_read_is_read_next_time(tmp_path: Path) -> None:
    written(tmp_path, [stored(1)], NOON)
    [path] = tmp_path.glob("*.sqlite")
    os.utime(path, (1, 1))
    marks: dict[str, Mark] = {}
    journal = Journal(str(tmp_path))
    fifo = path.with_name(f"{path.name}-journal")
    os.mkfifo(fifo)
    assert journal.totals(marks) == {}
    fifo.unlink()
    assert set(journal.totals(marks)) == {str(path)}
