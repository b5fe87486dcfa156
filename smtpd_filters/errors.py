"""Errors that an operator sees."""

from __future__ import annotations


class ConfigError(Exception):
    """A flag, a file or a line in a file is wrong.

    The text is the one clear line that is written to stderr before the filter
    exits with status 2; it names the flag, or the file and the line.
    """
