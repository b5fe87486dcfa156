"""The workloads for a filter: a dialogue, many of them at a time, and long messages."""

from __future__ import annotations

import itertools
import random
import select
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.player import Player

# One session with one message, in smtpd's order. Its client has an IPv6 address: that keeps
# filter-senderscore, which knows only of IPv4, from asking the DNS.
DIALOGUE = (
    ("report", "link-connect", "mail.example.net|pass|[2001:db8::9]:33174|[2001:db8::1]:25"),
    ("filter", "connect", "mail.example.net|[2001:db8::9]"),
    ("report", "link-greeting", "mx.example.org"),
    ("report", "protocol-server", "220 mx.example.org ESMTP OpenSMTPD"),
    ("report", "protocol-client", "EHLO mail.example.net"),
    ("filter", "ehlo", "mail.example.net"),
    ("report", "link-identify", "EHLO|mail.example.net"),
    ("report", "protocol-server", "250 HELP"),
    ("report", "protocol-client", "MAIL FROM:<alice@example.net>"),
    ("filter", "mail-from", "alice@example.net"),
    ("report", "tx-begin", "MESSAGE1"),
    ("report", "tx-mail", "MESSAGE1|ok|alice@example.net"),
    ("report", "protocol-server", "250 2.0.0 Ok"),
    ("report", "protocol-client", "RCPT TO:<bob@example.org>"),
    ("filter", "rcpt-to", "bob@example.org"),
    ("report", "tx-envelope", "MESSAGE1|MESSAGE1d00dfeed"),
    ("report", "tx-rcpt", "MESSAGE1|ok|bob@example.org"),
    ("report", "protocol-server", "250 2.1.5 Destination address valid: Recipient ok"),
    ("report", "protocol-client", "DATA"),
    ("filter", "data", ""),
    ("report", "tx-data", "MESSAGE1|ok"),
    ("report", "protocol-server", '354 Enter mail, end with "." on a line by itself'),
    ("filter", "data-line", ""),
    ("report", "protocol-client", "."),
    ("filter", "commit", ""),
    ("report", "tx-commit", "MESSAGE1|1234"),
    ("report", "tx-reset", "MESSAGE1"),
    ("report", "protocol-server", "250 2.0.0 MESSAGE1 Message accepted for delivery"),
    ("report", "protocol-client", "QUIT"),
    ("filter", "quit", ""),
    ("report", "protocol-server", "221 2.0.0 Bye"),
    ("report", "link-disconnect", ""),
)
# Reports without fields after the session.
BARE = {"link-disconnect"}

# smtpd has one token per filter and phase; here one does for all.
TOKEN = b"7c0ffee5ca1ab1e5"
IN_TURN = b"|" + TOKEN + b"|"
PROCEED = b"|" + TOKEN + b"|proceed"

HEADER = (
    b"Received: from mail.example.net (mail.example.net [IPv6:2001:db8::9])",
    b"\tby mx.example.org (OpenSMTPD) with ESMTPS id 0badcafe",
    b"From: Alice <alice@example.net>",
    b"To: Bob <bob@example.org>",
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=",
    b"Message-ID: <1@example.net>",
    b"Content-Type: text/plain; charset=utf-8",
    b"",
)
# Lines that careless filters fail on: stuffed dots, bars, bytes that are not UTF-8, lines that
# look like events.
AWKWARD = (
    b"..",
    b"a|b||c|",
    b"caf\xc3\xa9 \xe9\xff",
    b"",
    b"filter|0.7|1576146008.006099|smtp-in|data-line|0|0|.",
    b"  white space \t",
)
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

_ids = random.Random(20)  # noqa: S311  # the same ids in every run
_microseconds = itertools.count(1_576_146_008_000_000)


def stamp() -> bytes:
    """Return the time of the next event, as smtpd writes it."""
    return b"%d.%06d" % divmod(next(_microseconds), 1_000_000)


def message(lines: int, width: int = 60) -> list[bytes]:
    """A message of `lines` lines, header and final dot not counted, most of them `width` long."""
    rest = max(0, lines - len(AWKWARD))
    pool = [bytes(_ids.choices(ALPHABET, k=width)) for _ in range(min(rest, 499))]
    filling = itertools.islice(itertools.cycle(pool), rest) if pool else ()
    return [*HEADER, *AWKWARD[:lines], *filling, b"."]


@dataclass(slots=True)
class Play:
    """The events of one session, cut where an answer is awaited.

    `steps` holds what is sent and the phase whose answer is awaited (None at the end).
    """

    session: bytes
    steps: list[tuple[bytes, str | None]]
    at: int = 0
    asked: float = 0.0
    returned: list[bytes] = field(default_factory=list)


class Score:
    """The events of a session that a filter has registered, as a template."""

    def __init__(self, player: Player) -> None:
        """Keep the part of the dialogue that the filter has registered."""
        self.steps: list[tuple[bytes, str | None]] = []
        pending = b""
        for kind, name, rest in DIALOGUE:
            head = f"{kind}|0.7|SECONDS.MICROS|smtp-in|{name}|SESSION".encode()
            if kind == "report":
                if player.reports & {name, "*"}:
                    pending += head + (b"" if name in BARE else b"|" + rest.encode()) + b"\n"
            elif name in player.phases:
                if name != "data-line":
                    pending += head + IN_TURN + rest.encode() + b"\n"
                self.steps.append((pending, name))
                pending = b""
        self.steps.append((pending, None))

    def play(self) -> Play:
        """A session of its own."""
        session = b"%016x" % _ids.getrandbits(64)
        msgid = b"%08x" % _ids.getrandbits(32)
        return Play(
            session,
            [
                (
                    text.replace(b"SECONDS.MICROS", stamp())
                    .replace(b"SESSION", session)
                    .replace(b"MESSAGE1", msgid),
                    phase,
                )
                for text, phase in self.steps
            ],
        )


def data_lines(session: bytes, lines: Sequence[bytes]) -> Iterator[bytes]:
    """The requests for the lines of a message, `session` being hexadecimal."""
    tail = b"|smtp-in|data-line|" + session + IN_TURN
    for line in lines:
        yield b"filter|0.7|" + stamp() + tail + line + b"\n"


def check_message(player: Player, returned: Sequence[bytes], sent: Sequence[bytes]) -> None:
    """Return whether a message was returned unchanged, except for fields added before it."""
    added = len(returned) - len(sent)
    if added < 0 or list(returned[added:]) != list(sent) or b"." in returned[:added]:
        missing = [line[:80] for line in sent if line not in returned]
        raise player.error(f"{len(sent)} lines came back as {len(returned)}, without {missing[:3]}")


@dataclass(frozen=True, slots=True)
class Sessions:
    """The cost of a run of sessions: wall-clock seconds, and CPU seconds of the filter."""

    sessions: int
    seconds: float
    cpu: float
    latencies: list[float]

    @property
    def rate(self) -> float:
        """Sessions per second."""
        return self.sessions / self.seconds

    @property
    def cost(self) -> float:
        """CPU microseconds of the filter per session."""
        return self.cpu / self.sessions * 1e6

    def latency(self, share: float) -> float:
        """Microseconds within which this share of the decisions arrived."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6


class Stage:
    """A run of sessions; each continues as soon as its answer arrives."""

    def __init__(self, player: Player, waiting: list[Play], concurrent: int) -> None:
        """Prepare to play `waiting`, `concurrent` of them at a time."""
        self.player = player
        self.waiting = waiting
        self.concurrent = concurrent
        self.active: dict[bytes, Play] = {}
        self.outgoing = bytearray()
        self.latencies: list[float] = []

    def run(self) -> None:
        """Play until no session is left."""
        rest = b""
        while self.waiting or self.active or self.outgoing:
            while self.waiting and len(self.active) < self.concurrent:
                play = self.waiting.pop()
                self.active[play.session] = play
                self.ask(play)
            events = self.player.wait(sending=bool(self.outgoing))
            if events & ~select.POLLOUT:
                size = self.player.receive()
                now = time.perf_counter()
                *answers, rest = (rest + self.player.room[:size]).split(b"\n")
                for answer in answers:
                    self.take(answer, now)
            if self.outgoing:
                del self.outgoing[: self.player.send(bytes(self.outgoing))]

    def ask(self, play: Play) -> None:
        """Send a session's next request, or its last reports."""
        text, phase = play.steps[play.at]
        self.outgoing += text
        play.asked = time.perf_counter()
        if phase is None:
            del self.active[play.session]

    def take(self, line: bytes, now: float) -> None:
        """Continue the session that was answered."""
        if line.startswith(b"filter-result|"):
            play = self.active.get(line[14:30])
            if play is None or line[30:] != PROCEED or play.steps[play.at][1] == "data-line":
                raise self.player.error(f"unexpected answer {line[:120]!r}")
            self.latencies.append(now - play.asked)
        else:
            play = self.active.get(line[16:32])
            if play is None or line[32:50] != IN_TURN or play.steps[play.at][1] != "data-line":
                raise self.player.error(f"unexpected line {line[:120]!r}")
            content = line[50:]
            play.returned.append(content)
            if content != b".":
                return
        play.at += 1
        self.ask(play)


def sessions(player: Player, count: int, concurrent: int, lines: Sequence[bytes]) -> Sessions:
    """Play `count` sessions, `concurrent` of them at a time, each with a message of `lines`."""
    score = Score(player)
    plays = [score.play() for _ in range(count)]
    for play in plays:
        play.steps = [
            (text + b"".join(data_lines(play.session, lines)), phase)
            if phase == "data-line"
            else (text, phase)
            for text, phase in play.steps
        ]
    return perform(player, plays, concurrent, lines)


def perform(
    player: Player, plays: Sequence[Play], concurrent: int, lines: Sequence[bytes]
) -> Sessions:
    """Have these played in their order, `concurrent` at a time; each has a message of `lines`."""
    stage = Stage(player, list(reversed(plays)), concurrent)  # it takes them from the end
    cpu, start = player.cpu(), time.perf_counter()
    stage.run()
    seconds, cpu = time.perf_counter() - start, player.cpu() - cpu
    if "data-line" in player.phases:
        for play in plays:
            check_message(player, play.returned, lines)
    return Sessions(len(plays), seconds, cpu / 1e9, stage.latencies)


@dataclass(frozen=True, slots=True)
class Lines:
    """The cost of data-lines: wall-clock seconds, and CPU seconds of the filter."""

    lines: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Lines per second."""
        return self.lines / self.seconds

    @property
    def cost(self) -> float:
        """CPU nanoseconds of the filter per line."""
        return self.cpu / self.lines * 1e9


def lines_of(player: Player, messages: int, concurrent: int, lines: Sequence[bytes]) -> Lines:
    """Play `messages` messages of `lines`, the lines of `concurrent` sessions taking turns.

    Only the lines are on the clock, not the commands around them.
    """
    score = Score(player)
    # The first message tells how much the filter puts in front of each.
    added = wave(player, [score.play()], lines, None)[2]
    done, seconds, cpu = 0, 0.0, 0
    while done < messages:
        plays = [score.play() for _ in range(min(concurrent, messages - done))]
        took, used, _ = wave(player, plays, lines, added)
        seconds, cpu, done = seconds + took, cpu + used, done + len(plays)
    return Lines(messages * len(lines), seconds, cpu / 1e9)


def wave(
    player: Player, plays: Sequence[Play], lines: Sequence[bytes], added: int | None
) -> tuple[float, int, int]:
    """Take sessions through the dialogue in step.

    Returns the seconds and the filter's CPU nanoseconds that their data-lines took, and the bytes
    that were added to each message; `added` is what is known of that.
    """
    seconds, cpu = 0.0, 0
    for place, (_, phase) in enumerate(plays[0].steps):
        text = b"".join(play.steps[place][0] for play in plays)
        if phase == "data-line":
            text += b"".join(
                itertools.chain.from_iterable(
                    zip(*(data_lines(play.session, lines) for play in plays), strict=True)
                )
            )
            whole = len(plays) * sum(len(line) + 51 for line in lines)
            expected = None if added is None else whole + len(plays) * added
            player.reserve(whole + (1 << 20))
            cpu, start = player.cpu(), time.perf_counter()
            with player.exchange(text, size=expected, ending=IN_TURN + b".\n") as answer:
                seconds, cpu = time.perf_counter() - start, player.cpu() - cpu
                got = answer.tobytes()
            added = (len(got) - whole) // len(plays)
            check_wave(player, plays, got, lines)
        elif phase is None:
            player.exchange(text, size=0).release()
        else:
            with player.exchange(text, lines=len(plays)) as answer:
                got = answer.tobytes()
            due = [b"filter-result|" + play.session + PROCEED for play in plays]
            if sorted(got.splitlines()) != sorted(due):
                raise player.error(f"unexpected answer to {phase}: {got[:120]!r}")
    return seconds, cpu, added or 0


def check_wave(player: Player, plays: Sequence[Play], got: bytes, lines: Sequence[bytes]) -> None:
    """Return whether every message of a wave was returned whole."""
    returned: dict[bytes, list[bytes]] = {play.session: [] for play in plays}
    *answers, rest = got.split(b"\n")
    for line in answers:
        content = returned.get(line[16:32])
        if content is None or (line[:16], line[32:50]) != (b"filter-dataline|", IN_TURN):
            raise player.error(f"unexpected line {line[:120]!r}")
        content.append(line[50:])
    if rest:
        raise player.error(f"half a line at the end: {rest[:120]!r}")
    for content in returned.values():
        check_message(player, content, lines)
