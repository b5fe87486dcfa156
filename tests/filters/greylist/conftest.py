"""The stores of tests/stores."""

from tests.stores.conftest import clock, kind, notes, store

__all__ = ["clock", "kind", "notes", "store"]
