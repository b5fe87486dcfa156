"""Settings: declared once in a filter's file, parsed from flags or TOML, documented in the manual.

`smtpd_filters.settings.manual` renders them for `--help` and manual pages; filters don't import it
at start.
"""

from __future__ import annotations

from .common import (
    MAX_DEADLINE,
    SUPERVISED,
    CommonSettings,
    ConversationSettings,
    PolicySettings,
    ProcessSettings,
    common_options,
    policy_options,
)
from .declare import Option, Settings, from_mapping, operand, option
from .flags import (
    CHECKING,
    ONLINE,
    TRAITS,
    UNDER_SUPERVISOR,
    die,
    package,
    parse_command,
    parse_flags,
    start_status,
)
from .kind import Kind
from .kinds import (
    DELIMITER,
    ENDPOINT,
    FILTER_NAME,
    INTEGER,
    LIST,
    NUMBER,
    PATH,
    REPLY,
    SECONDS,
    SIZE,
    SWITCH,
    TEXT,
    Loadable,
    choice,
    table,
)
from .shared import Pool, Shared

__all__ = [
    "CHECKING",
    "DELIMITER",
    "ENDPOINT",
    "FILTER_NAME",
    "INTEGER",
    "LIST",
    "MAX_DEADLINE",
    "NUMBER",
    "ONLINE",
    "PATH",
    "REPLY",
    "SECONDS",
    "SIZE",
    "SUPERVISED",
    "SWITCH",
    "TEXT",
    "TRAITS",
    "UNDER_SUPERVISOR",
    "CommonSettings",
    "ConversationSettings",
    "Kind",
    "Loadable",
    "Option",
    "PolicySettings",
    "Pool",
    "ProcessSettings",
    "Settings",
    "Shared",
    "choice",
    "common_options",
    "die",
    "from_mapping",
    "operand",
    "option",
    "package",
    "parse_command",
    "parse_flags",
    "policy_options",
    "start_status",
    "table",
]
