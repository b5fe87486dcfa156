"""The program `python -m smtpd_filters.filters.spamd`."""

from __future__ import annotations

import sys

from .policy import main

if __name__ == "__main__":
    sys.exit(main())
