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

from smtpd_filters.checks.subject import tag_subject
from smtpd_filters.message.folding import encoded_word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from smtpd_filters.message import Field, Headers
    from smtpd_filters.message.disguise import Name

#: The field with which smtpd marks a message, and by which mail.maildir(8) finds junk.
MARK = "X-Spam"
#: Units of work for an edit (`pace`), and how many lines of the block, and characters of a value,
#: are one additional unit.
_EDIT, _LINES_PER_UNIT, _FOLDED_PER_UNIT = 20, 4, 4
#: Up to so many names to be removed, the block is searched for each; above, a set is faster.
_FEW = 4


class Edits:
    """The edits of one header block: first the removals, then `settle`, then the additions.

    `note` is called with the reason for each field that is left out.
    """

    __slots__ = ("_admit", "_headers", "_note", "_original", "_own", "_top", "_walk")

    def __init__(self, headers: Headers, note: Callable[[str], None]) -> None:
        from smtpd_filters.runtime.pace import pace  # asyncio is already loaded

        self._headers = headers
        self._note = note
        self._admit = pace().admit
        self._walk = _EDIT + headers.text().count(b"\n") // _LINES_PER_UNIT
        self._top: _Top | None = None
        #: The fields before the additions; and the scanner's additions, which marks don't replace.
        self._original: set[Field] = set()
        self._own: set[Field] | None = None

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
        if name.lower() != MARK.lower() or not top.marks or replaced:
            headers.remove(name, numbers)
            return
        count = sum(1 for _ in headers.values(name))
        chosen = set(range(1, count + 1)) if 0 in numbers else set()
        chosen.update(number if number > 0 else count + 1 + number for number in numbers if number)
        removable = [number for number in chosen if number > top.marks]
        if removable:
            headers.remove(name, removable)

    async def remove_foreign(self, name: Name) -> int:
        """Remove the client's own fields of a name (`Name.remove_foreign`); count them."""
        if not name.occurs(self._headers):
            return 0
        await self.spend()
        self._top = None
        return name.remove_foreign(self._headers)

    async def settle(self) -> None:
        """End the removals: fields that are added from now on are the scanner's own."""
        (await self.top()).settle()
        self._original = set(self._headers)

    # -- the scanner's own fields --------------------------------------------------------------

    async def add(self, name: str, value: str, order: int | None = None) -> None:
        """Add a field at a milter's position, or at the bottom."""
        headers = self._headers
        await self.spend(value)
        if order is None or order == -1:
            self._try(name, lambda: headers.append(name, value))
        else:
            place = (await self.top()).place(order)
            self._try(name, lambda: headers.insert(place, name, value))

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
        own = self._scanners()
        for name, value in (
            ("X-Spam-Status", status),
            ("X-Spam-Score", f"{score:g} / {required:g}"),
        ):
            if any(field.key == name.lower() for field in own):
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
        key, own = name.lower(), self._scanners()
        present = any(field.key == key and field.value.lower() == value.lower() for field in own)
        if not present and not self._try(name, lambda: self._headers.prepend(name, value)):
            return False
        self._remove_others(name, kept=0 if present else 1)
        return True

    def _scanners(self) -> set[Field]:
        """Return the fields that the scanner has added."""
        if self._own is None:
            self._own = set(self._headers) - self._original
        return self._own

    def _remove_others(self, name: str, kept: int = 0) -> None:
        """Remove the fields of a name, except for the first `kept` ones and the scanner's."""
        named, own = self._headers.fields(name), self._scanners()
        numbers = [number for number, field in enumerate(named, 1) if field not in own]
        self._headers.remove(name, numbers[kept:])

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

    __slots__ = ("_above", "_headers", "marks")

    def __init__(self, headers: Headers) -> None:
        self._headers = headers
        above = []
        for field in headers:
            above.append(field)
            if field.key == "received":
                break
        else:
            above = []
        self._above = above
        #: The number of fields that are an earlier filter's mark.
        self.marks = sum(field.key == MARK.lower() for field in above)

    def __contains__(self, field: Field) -> bool:
        """Return whether a field is smtpd's own or above it."""
        return field in self._above

    def settle(self) -> None:
        """Update the top after the removals."""
        here = set(self._headers)
        self._above = [field for field in self._above if field in here]

    def place(self, order: int) -> int:
        """Return the position in the block for a milter's order."""
        if order < 0:
            # -2 is above the last field; a position above the top is the top.
            return max(len(self._headers) + order + 1, 0)
        return len(self._above) + order - 1 if order else 0


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
