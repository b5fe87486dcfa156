"""Stores: what filters remember, in the memory of a process, in a SQLite file or on a server."""

from __future__ import annotations

from .keys import join, split
from .operations import Add, Count, Delete, Entry, Get, Join, Joined, Leave, Put, Replace, Take
from .store import Store

__all__ = [
    "Add",
    "Count",
    "Delete",
    "Entry",
    "Get",
    "Join",
    "Joined",
    "Leave",
    "Put",
    "Replace",
    "Store",
    "Take",
    "join",
    "split",
]
