"""The page that tries other settings, with real trials and with processes that misbehave."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.web import trials
from smtpd_filters.web.guard import Access
from smtpd_filters.web.trials import Setup, TrialError, Trials
from tests.cli.trials import COMMAND, made
from tests.journal.made import refused

from .test_page import HOSTILE
from .visitor import Document, Visitor, visit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DYNAMIC = "7d0b140ec510e76a"
PATIENCE = 60.0
RULES = "junk-at = 2\nreject-at = 3\n[filter.dyndns]\nscore = 3\n"
LATER = {"kind": "chain", "section": "in", "set.junk-at": "3", "set.reject-at": ""}


def setup(folder: Path, rules: str = RULES) -> Setup:
    now = int((time.time() - 3600) * 1000)
    tried = made(folder, rules, stories=[refused(s=DYNAMIC, t=now)])
    return Setup(COMMAND, tried.request)


def saying(*lines: str, then: str = "") -> Setup:
    """Return a setup whose process writes lines."""
    body = "".join(f"print({line!r}, flush=True)\n" for line in lines)
    code = f"import sys, os, time\nrequest = sys.stdin.read()\n{body}{then}"
    return Setup([sys.executable, "-c", code], {})


def form_of(page: Document) -> str:
    """Return the token of the page's forms."""
    return next(
        str(attrs["value"])
        for tag, attrs in page.tags
        if tag == "input" and attrs.get("name") == "form"
    )


async def send(visitor: Visitor, path: str, user: str = "", **fields: str) -> tuple[int, str]:
    """Send a form; return the status, and the address of a redirection."""
    headers = {"Origin": visitor.base, **({"X-User": user} if user else {})}
    async with visitor.session.post(
        visitor.base + path, data=fields, headers=headers, allow_redirects=False
    ) as response:
        return response.status, response.headers.get("Location", "")


async def ended(visitor: Visitor, path: str) -> Document:
    """Return the page of a trial that has ended."""
    until = time.monotonic() + PATIENCE
    while True:
        async with visitor.session.get(visitor.base + path) as response:
            page = Document(await response.text())
        if "It runs" not in page.text:
            assert page.active == []
            return page
        assert ("meta", {"http-equiv": "refresh", "content": "2"}) in page.tags
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


def trying(
    folder: Path,
    given: Setup,
    visiting: Callable[[Visitor], Awaitable[None]],
    access: Access = Access(),  # noqa: B008  # immutable
) -> None:
    (folder / "journal").mkdir(exist_ok=True)
    visit(folder / "journal", visiting, access, trials=given)


def test_settings_are_tried_from_the_story_of_a_message(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        [story] = {
            link for link in (await visitor.get("/search")).links if link.startswith("/story/")
        }
        [link] = [each for each in (await visitor.get(story)).links if each.startswith("/try?")]
        page = await visitor.get(link)
        for text in ("[chain.in]", "[filter.dyndns]", "junk-at", "score-header", "dry-run"):
            assert text in page.text
        # What names a file or a table is not offered.
        assert "extra-patterns" not in page.text
        form = form_of(page)
        story = story.removeprefix("/story/")
        status, to = await send(visitor, "/try", form=form, story=story, **LATER)
        assert status == 303
        page = await ended(visitor, to)
        assert "2 of 7 messages differ." in page.text
        assert "[chain.in]\njunk-at = 3\n# without reject-at" in page.text
        assert "this message" in page.text
        assert "Refused as probable spam" in page.text
        assert "accepted as junk" in page.text

    trying(tmp_path, setup(tmp_path), visiting)


def test_errors_are_shown(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        form = form_of(await visitor.get("/try"))
        for fields, text in (
            ({**LATER, "set.junk-at": "9"}, "junk-at"),
            ({**LATER, "set.filters": "x"}, '"filters" is no setting that can be tried here'),
            ({**LATER, "section": "<script>"}, "no table [chain.<script>] of this chain"),
            ({"kind": "chain", "section": "in"}, "nothing is changed"),
            ({**LATER, "set.reject-at": "\u202e<b>"}, "reject-at: expected at most"),
        ):
            _, to = await send(visitor, "/try", form=form, **fields)
            page = await ended(visitor, to)
            assert text in page.text
            assert "\u202e" not in page.text

    trying(tmp_path, setup(tmp_path), visiting)


def test_a_file_that_has_become_invalid_is_told(tmp_path: Path) -> None:
    given = setup(tmp_path)
    (tmp_path / "chain.toml").write_text("[chain.in]\nfilters = 3\n")

    async def visiting(visitor: Visitor) -> None:
        assert "filters: expected an array" in (await visitor.get("/try", 503)).text

    trying(tmp_path, given, visiting)


def test_forms_of_others_start_nothing(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        form = form_of(await visitor.get("/try"))
        assert (await send(visitor, "/try", form="x", **LATER))[0] == 403
        assert (await send(visitor, "/try", **LATER))[0] == 403
        for headers in ({"Origin": "http://evil.example"}, {}):
            async with visitor.session.post(
                f"{visitor.base}/try", data={"form": form, **LATER}, headers=headers
            ) as response:
                assert response.status == 403
        async with visitor.session.get(f"{visitor.base}/try?kind=chain&set.junk-at=3") as response:
            assert "Choose" not in await response.text()
        long = {f"set.x{number}": "1" for number in range(101)}
        assert (await send(visitor, "/try", form=form, **LATER, **long))[0] == 400
        assert (await send(visitor, "/try", form=form, kind="x" * 401))[0] == 400
        assert (await send(visitor, "/try", form=form, story="../../etc", **LATER))[0] == 303
        await visitor.get("/try/unknown", 404)
        await visitor.get("/try/..%2F..%2Fetc%2Fpasswd", 404)

    trying(tmp_path, setup(tmp_path), visiting)


def test_without_the_flag_there_is_nothing(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        assert "/try" not in (await visitor.get("/")).links
        await visitor.get("/try", 404)

    visit(tmp_path, visiting)


def alive(groups: set[int]) -> list[str]:
    """Return the processes of groups that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            line = path.read_text()
        except OSError:
            continue
        state, _, group = line.rpartition(")")[2].split()[:3]
        if int(group) in groups and state != "Z":
            found.append(line)
    return found


SLEEPS = "import subprocess; subprocess.Popen(['sleep', '1000']); time.sleep(1000)"


def test_one_trial_a_user_and_two_in_all(tmp_path: Path) -> None:
    described = '{"result": {"chain": "in", "sections": []}}'
    marker = tmp_path / "pids"
    then = (
        f"if 'describe' in request: print('''{described}''', flush=True)\n"
        f"else:\n open({str(marker)!r}, 'a').write(f'{{os.getpid()}}\\n')\n {SLEEPS}"
    )
    access = Access(user_header="X-User", proxies={"127.0.0.1"}, hosts={"127.0.0.1"})

    async def visiting(visitor: Visitor) -> None:
        found: dict[str, tuple[str, str]] = {}
        for user in ("ann", "bob", "eve"):
            async with visitor.session.get(
                f"{visitor.base}/", headers={"X-User": user}
            ) as response:
                form = form_of(Document(await response.text()))
            status, to = await send(visitor, "/try", user, form=form, **LATER)
            found[user] = form, to
            assert status == (303 if user != "eve" else 429)
        (form, to), (_, other) = found["ann"], found["bob"]
        assert (await send(visitor, "/try", "ann", form=form, **LATER))[0] == 429
        # A trial is its user's own.
        for user, status in (("ann", 404), ("bob", 200)):
            async with visitor.session.get(
                visitor.base + other, headers={"X-User": user}
            ) as response:
                assert response.status == status
        assert (await send(visitor, f"{other}/cancel", "ann", form=form))[0] == 404
        until = time.monotonic() + PATIENCE
        while not marker.exists() or len(marker.read_text().split()) < 2:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)
        assert (await send(visitor, f"{to}/cancel", "ann", form=form))[0] == 303
        async with visitor.session.get(visitor.base + to, headers={"X-User": "ann"}) as response:
            assert "Cancelled" in await response.text()
        assert (await send(visitor, "/try", "ann", form=form, **LATER))[0] == 303

    trying(tmp_path, saying(then=then), visiting, access)
    # The end of the service ends what is left, with its children.
    assert alive({*map(int, marker.read_text().split())}) == []


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (saying(), "has failed"),
        (saying("no JSON"), "has failed"),
        (saying("[]"), "has failed"),
        (saying('{"progress": 3}'), "has failed"),
        (saying('{"other": 3}'), "has failed"),
        (saying(then="print('x' * (9 << 20))"), "has failed"),
        (saying(then="os.kill(os.getpid(), 9)"), "has failed"),
        (saying('{"progress": [1, 2]}', then="time.sleep(1000)"), "longer than 0.5 seconds"),
        (Setup([f"{__file__}.missing"], {}), "can't be started: No such file or directory"),
    ],
    ids=["nothing", "text", "list", "number", "other", "long", "killed", "silent", "missing"],
)
def test_processes_that_misbehave(given: Setup, text: str) -> None:
    async def run() -> None:
        made = Trials(given, time.monotonic, 0.5 if "longer" in text else PATIENCE)
        trial = made.begin("", "", {})
        assert trial.task is not None
        await trial.task
        assert text in trial.error
        assert not trial.runs

    asyncio.run(run())


def test_users_can_not_change_what_the_operator_has_chosen(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    then = f"open({str(seen)!r}, 'w').write(request); print('{{\"result\": {{}}}}')"

    async def run() -> None:
        given = saying(then=then)._replace(request={"file": "ours", "recordings": "ours"})
        trial = Trials(given, time.monotonic).begin("", "", {"file": "theirs", "do": "describe"})
        assert trial.task is not None
        await trial.task

    asyncio.run(run())
    assert "theirs" not in seen.read_text()


def test_results_are_forgotten() -> None:
    async def run() -> None:
        now = 0.0
        # A failure must not leave a trial that has just begun to asyncio.run, which hangs on it.
        async with aclosing(Trials(saying('{"result": {}}'), lambda: now)) as made:
            first = made.begin("", "", {})
            for number in range(trials.MOST + 3):
                now += 1
                trial = made.begin(f"user{number}", "", {})
                assert trial.task is not None
                await trial.task
                assert first.task is not None
                await first.task
            assert made.find(first.id, "") is None
            assert made.find(trial.id, trial.user) is trial
            now += trials.KEPT + 1
            made.begin("x", "", {})
            with pytest.raises(TrialError):
                made.begin("x", "", {})
            assert made.find(trial.id, trial.user) is None

    asyncio.run(run())


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_outsiders_write_is_only_text(text: str, tmp_path: Path) -> None:
    fate = {"outcome": "refused", "phase": text, "reply": text}
    row: dict[str, Any] = {
        "time": 1.0, "session": text, "client": text, "sender": text, "recipients": [text] * 5,
        "old": fate, "new": {**fate, "outcome": "passes"}, "edited": True, "differs": True,
        "missing": [text], "this": True,
    }  # fmt: skip
    result = {
        "change": f"[chain.in]\n{text}", "sessions": 1, "left_out": 1, "messages": 1, "differ": 1,
        "unsure": 1, "without_body": True, "rows": [row], "missing": [[text, 1]], "this": True,
    }  # fmt: skip
    field = {
        "key": text, "value": text, "default": text, "choices": [], "noun": "N", "help": "Help.",
    }  # fmt: skip
    chosen = {**field, "choices": [text]}
    section = {
        "kind": "filter", "name": text, "fields": [field, chosen], "stands_in": text, "asks": True,
    }  # fmt: skip
    described = {"result": {"chain": text, "sections": [section]}}
    then = (
        f"print({json.dumps(described)!r} if 'describe' in request else "
        f"{json.dumps({'result': result})!r})"
    )

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/try")
        _, to = await send(visitor, "/try", form=form_of(page), **LATER)
        for shown in (page, await ended(visitor, to)):
            assert all(each not in shown.text for each in "\u202e\x1b\x00\x07")
            assert shown.active == []

    trying(tmp_path, saying(then=then), visiting)


def test_one_process_describes_for_all() -> None:
    async def run() -> None:
        now = 0.0
        body = 'print(f\'{{"result": {{"pid": {os.getpid()}}}}}\')'
        made = Trials(saying(then=body), lambda: now)
        found = await asyncio.gather(*(made.describe() for _ in range(20)))
        assert len({each["pid"] for each in found}) == 1
        now += trials.FRESH
        assert (await made.describe())["pid"] != found[0]["pid"]

    asyncio.run(run())


def test_a_failed_description_is_not_tried_at_once_again() -> None:
    async def run() -> None:
        now = 0.0
        made = Trials(saying('{"error": "no file"}'), lambda: now)
        for _ in range(3):
            with pytest.raises(TrialError, match="no file"):
                await made.describe()
        first = made._described
        now += trials.FRESH
        with pytest.raises(TrialError, match="no file"):
            await made.describe()
        assert made._described is not first

    asyncio.run(run())
