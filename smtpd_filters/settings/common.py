"""The settings that every filter has beside its own, and those of the process that it runs in."""

from __future__ import annotations

from .declare import Settings, option
from .kinds import DELIMITER, FILTER_NAME, PATH, SECONDS, SWITCH, choice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ON_ERROR = ("proceed", "junk", "tempfail")
DEADLINE = 30.0  # seconds
# An SMTP client waits 5 minutes for a reply (RFC 5321 section 4.5.3.2), and so does smtpd for one.
MAX_DEADLINE = 300.0


class ConversationSettings(Settings):
    """Settings of a process that smtpd starts, even if it only runs other programs."""

    verbose = option(
        SWITCH, default=False, flags=("-v",), help="Log every decision, including those to proceed."
    )
    long_lines = option(
        choice("split", "refuse"),
        default="split",
        help="What to do with a line of a message that is too long for smtpd: split it "
        "(a header field is folded, no text is lost) or refuse the message.",
    )
    journal = option(
        PATH,
        default=None,
        help="Send what is decided to the journal with this socket (see smtpd-filters journal), "
        "without ever waiting for it. By default nothing is sent.",
    )


class ProcessSettings(ConversationSettings):
    """Settings of a process, shared by all filters that run in it."""

    sandbox = option(
        choice("off", "on", "strict"),
        default="on",
        help="Give up, before the first client, the files, connections and system calls that the "
        "settings don't need, as far as the operating system can (on), or refuse to start if it "
        "can't (strict).",
    )
    sub_addr_delim = option(
        DELIMITER,
        default="+",
        help="The character that begins the tag of an address, as smtp sub-addr-delim in "
        "smtpd.conf(5): in tables and limits user+tag is user.",
    )


class PolicySettings(Settings):
    """Settings that every filter has for itself: what to do when its policy can't decide."""

    on_error = option(
        choice(*ON_ERROR),
        default="proceed",
        help="What to do when the filter fails or misses its deadline.",
    )
    deadline = option(
        SECONDS(low=0.001, high=MAX_DEADLINE),
        default=DEADLINE,
        help="How long the filter may take for a decision: at most 5 minutes, since smtpd and its "
        "clients wait no longer.",
    )
    dry_run = option(
        SWITCH,
        default=False,
        help="Only log decisions about clients and mail, and let everything pass unchanged.",
    )


SUPERVISED = option(
    SWITCH,
    default=False,
    help="Run under filter-supervise, so that smtpd goes on if this process fails, and a reload "
    "starts it again.",
)


class CommonSettings(PolicySettings, ProcessSettings):
    """Settings of every executable, beside its filter's own."""

    filter_name = option(
        FILTER_NAME,
        default=None,
        help="The name of this filter in the log and the journal, which distinguishes several of "
        "one kind. Use the name in smtpd.conf: smtpd doesn't pass it to filters. By default it is "
        "the kind, such as fcrdns.",
    )
    supervised = SUPERVISED


def policy_options(
    on_error_choices: Sequence[str] = ON_ERROR,
    on_error_default: str = "proceed",
    deadline_default: float = DEADLINE,
) -> type[PolicySettings]:
    """Return the `PolicySettings` of one filter, with its choices for --on-error and defaults."""
    declared = PolicySettings.options

    class Policy(PolicySettings):
        on_error = option(
            choice(*on_error_choices),
            default=on_error_default,
            help=declared["on_error"].help,
        )
        deadline = option(
            declared["deadline"].kind,
            default=deadline_default,
            help=declared["deadline"].help,
        )

    return Policy


def common_options(
    on_error_choices: Sequence[str] = ON_ERROR,
    on_error_default: str = "proceed",
    deadline_default: float = DEADLINE,
) -> type[CommonSettings]:
    """Return the `CommonSettings` of an executable of one filter; see `policy_options`."""
    policy = policy_options(on_error_choices, on_error_default, deadline_default)
    return type("CommonSettings", (policy, CommonSettings), {})
