"""Tags of local parts: smtpd delivers `user+tag` to `user`.

The delimiter is that of `smtp sub-addr-delim` in smtpd.conf(5), which smtpd doesn't report. One
process serves one smtpd, so the process has it for all of its filters and tables.
"""

from __future__ import annotations

#: smtpd's default.
PLUS = "+"


class Tags:
    """The delimiter of tags, and what it delimits."""

    __slots__ = ("delimiter",)

    def __init__(self, delimiter: str = PLUS) -> None:
        #: Set at the start of the process, from its settings.
        self.delimiter = delimiter

    def without(self, local: str) -> str:
        """Return a local part without its tag; one that begins with the delimiter has none."""
        return local.partition(self.delimiter)[0] or local


#: The tags of this process.
TAGS = Tags()
