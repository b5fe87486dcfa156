"""Edits of the header block that scanners have in common: fields, marks, tags, and their places.

Positions of added fields count from smtpd's own Received field: for a milter, the MTA's own field
is number 0, and 1 is the top of the message as the client sent it. smtpd passes that field to its
filters, below the mark of an earlier filter. So positions from 1 on are counted after it, and 0 is
the very top. For removals a scanner, which is sent the same lines, counts over all of them.

Invariants
----------
*Header block intact*: whatever a name or a value contains, the header block stays valid: a field
with an invalid name is left out and noted, and a value is escaped
(`smtpd_filters.message.folding`).
*Earlier mark kept*: smtpd's mark for an earlier filter stays, unless a field from the scanner
replaces it.
*Paced*: each edit waits for its own share of the pace (`pace`).
"""

from __future__ import annotations

from itertools import takewhile

from smtpd_filters.checks.subject import tag_subject
from smtpd_filters.message.folding import encoded_word
from smtpd_filters.message.headers import fields_in, fields_named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from smtpd_filters.message import Headers
    from smtpd_filters.message.disguise import Name

#: The field with which smtpd marks a message, and by which mail.maildir(8) finds junk.
MARK = "X-Spam"
#: Units of work for an edit (`pace`), and how many lines and bytes of the block, and characters of
#: a value, are one additional unit.
_EDIT, _LINES_PER_UNIT, _COPIED_PER_UNIT, _FOLDED_PER_UNIT = 20, 4, 1000, 4
#: Up to so many names to be removed, the block is searched for each; above, a set is faster.
_FEW = 4


class Edits:
    """The edits of one header block: first the removals, then `settle`, then the additions.

    `note` is called with the reason for each field that is left out.
    """

    __slots__ = ("_admit", "_headers", "_note", "_own", "_top", "_walk")

    def __init__(self, headers: Headers, note: Callable[[str], None]) -> None:
        from smtpd_filters.runtime.pace import pace  # asyncio is already loaded

        self._headers = headers
        self._note = note
        self._admit = pace().admit
        text = headers.text()
        self._walk = _EDIT + text.count(b"\n") // _LINES_PER_UNIT + len(text) // _COPIED_PER_UNIT
        self._top: _Top | None = None
        #: The scanner's additions, which marks don't replace: by names in lower case, their numbers
        #: among the fields of that name.
        self._own: dict[str, list[int]] = {}

    async def spend(self, value: str = "") -> None:
        """Wait until the pace admits an edit: each walks through the block and folds a value."""
        await self._admit(self._walk + len(value) // _FOLDED_PER_UNIT)

    async def top(self) -> _Top:
        """Return the top of the message, which is found once."""
        if self._top is None:
            await self.spend()
            self._top = _Top(self._headers)
        return self._top

    # -- removals ----------------------------------------------------------------------------

    async def remove(
        self, name: str, numbers: Sequence[int] = (0,), *, replaced: bool = False
    ) -> None:
        """Remove fields of a name: 0 (all), n or -n; `replaced` says that the scanner adds one."""
        top, headers = await self.top(), self._headers
        await self.spend()
        kept = top.marks if name.lower() == MARK.lower() and not replaced else 0
        count = sum(1 for _ in headers.each(name))
        chosen: Collection[int] = range(kept + 1, count + 1)
        if 0 not in numbers:
            counted = {number if number > 0 else count + 1 + number for number in numbers}
            chosen = {number for number in counted if number in chosen}
        if chosen:
            top.removes(name, chosen)
            headers.remove(name, chosen)

    async def remove_foreign(self, name: Name) -> int:
        """Remove the client's own fields of a name (`Name.remove_foreign`); count them."""
        if not name.occurs(self._headers):
            return 0
        await self.spend()
        self._top = None
        return name.remove_foreign(self._headers)

    async def settle(self) -> None:
        """End the removals: fields that are added from now on are the scanner's own."""
        await self.top()
        self._own = {}

    # -- the scanner's own fields --------------------------------------------------------------

    async def add(self, name: str, value: str, order: int | None = None) -> None:
        """Add a field at a milter's position, or at the bottom."""
        headers = self._headers
        await self.spend(value)
        if order is None or order == -1:
            number = self._count(name) + 1
            added = self._try(name, lambda: headers.append(name, value))
        else:
            place = (await self.top()).place(order)
            number = self._count(name, place) + 1
            added = self._try(name, lambda: headers.insert(place, name, value))
        if added:
            own = self._own.get(name.lower(), [])
            self._own[name.lower()] = [each + (each >= number) for each in own] + [number]

    def _count(self, name: str, place: int | None = None) -> int:
        """Return the number of fields of a name, or of those above a place in the block."""
        if place is None:
            return sum(1 for _ in self._headers.each(name))
        key = name.lower().encode("utf-8", "replace")
        names = enumerate(match[1].lower() for match in fields_in(self._headers.text()))
        return sum(each == key for _, each in takewhile(lambda item: item[0] < place, names))

    # -- marks -----------------------------------------------------------------------------

    async def mark(self, marks: Iterable[tuple[str, str]] = ()) -> None:
        """Mark the message as junk: with these fields, else with `X-Spam: Yes`."""
        made = [await self.add_on_top(name or MARK, value) for name, value in marks]
        if not any(made):
            await self.add_on_top(MARK, "Yes")

    async def describe(
        self, score: float, required: float, tests: Iterable[tuple[str, float]]
    ) -> None:
        """Add score and tests in X-Spam-Status and X-Spam-Score, unless the scanner has.

        The format is that of the filter-rspamd written in Go.
        """
        listed = ", ".join(f"{name}={weight:.3f}" for name, weight in sorted(tests))
        status = f"Yes, score={score:.3f} required={required:.3f} tests=[{listed}]"
        await self.spend()
        for name, value in (
            ("X-Spam-Status", status),
            ("X-Spam-Score", f"{score:g} / {required:g}"),
        ):
            if name.lower() in self._own:
                self._remove_others(name)
            else:
                self._add_on_top(name, value)

    async def add_on_top(self, name: str, value: str) -> bool:
        """Add a field at the top, unless the scanner has added the same; remove others of its name.

        Returns whether the field is there: its name may be invalid.
        """
        await self.spend(value)
        return self._add_on_top(name, value)

    def _add_on_top(self, name: str, value: str) -> bool:
        key = name.lower()
        own = self._own.get(key, ())
        present = any(
            number in own and each.lower() == value.lower()
            for number, each in enumerate(self._headers.values(name), 1)
        )
        if not present:
            if not self._try(name, lambda: self._headers.prepend(name, value)):
                return False
            if own:
                self._own[key] = [number + 1 for number in own]
        self._remove_others(name, kept=0 if present else 1)
        return True

    def _remove_others(self, name: str, kept: int = 0) -> None:
        """Remove the fields of a name, except for the first `kept` ones and the scanner's."""
        count, own = self._count(name), self._own.get(name.lower(), ())
        if not own:
            self._headers.remove(name, range(kept + 1, count + 1))
            return
        numbers = [number for number in range(1, count + 1) if number not in own]
        self._headers.remove(name, numbers[kept:])
        left = sorted([*numbers[:kept], *own])
        self._own[name.lower()] = [at for at, number in enumerate(left, 1) if number in own]

    # -- the subject -----------------------------------------------------------------------

    async def replace_subject(self, subject: str) -> None:
        """Replace the subject, which is encoded here unless it is ASCII."""
        await self.spend(subject)
        encoded = subject if subject.isascii() else encoded_word(subject)
        self._headers.replace("Subject", encoded, add=True)

    async def tag_subject(self, tag: str) -> None:
        """Put a tag before the subject, unless it is there."""
        await self.spend(self._headers.get("Subject", ""))
        tag_subject(self._headers, tag)

    def _try(self, name: str, edit: Callable[[], None]) -> bool:
        try:
            edit()
        except ValueError:
            self._note(f"not a header's name: {name[:80]!r}")
            return False
        return True


class _Top:
    """The top of the message, from which positions are counted."""

    __slots__ = ("_above", "_end", "_headers", "marks")

    def __init__(self, headers: Headers) -> None:
        self._headers = headers
        text = headers.text()
        own = next(fields_named(text, text.lower(), "Received"), None)
        #: Where smtpd's own field ends in the text; and the number of fields to its end.
        self._end = own.end() if own else 0
        above = text[: self._end]
        self._above = sum(1 for _ in fields_in(above))
        #: The number of fields that are an earlier filter's mark.
        self.marks = sum(1 for _ in fields_named(above, above.lower(), MARK))

    def removes(self, name: str, numbers: Collection[int]) -> None:
        """Note that fields of a name are about to be removed, counted from 1."""
        above = self._headers.text()[: self._end]
        for number, field in enumerate(fields_named(above, above.lower(), name), 1):
            if number in numbers:
                self._above -= 1
                self._end -= field.end() - field.start()

    def place(self, order: int) -> int:
        """Return the position in the block for a milter's order."""
        if order < 0:
            # -2 is above the last field; a position above the top is the top.
            return max(len(self._headers) + order + 1, 0)
        return self._above + order - 1 if order else 0


def may_have(headers: Headers, names: Collection[str]) -> bool:
    """Return whether a line may begin with one of these lower-case names, by the faster way."""
    if len(names) <= _FEW:
        return _may_begin(headers, names)
    wanted = {name.encode("utf-8", "replace") for name in names}
    found = (line.partition(b":")[0].rstrip().lower() for line in headers.each_line())
    return any(name in wanted for name in found)


def _may_begin(headers: Headers, prefixes: Collection[str]) -> bool:
    """Return whether a line begins with one of these prefixes; the block isn't parsed."""
    if not prefixes:
        return False
    block = headers.text().lower()
    return any(b"\n" + each.lower().encode("utf-8", "replace") in block for each in prefixes)
