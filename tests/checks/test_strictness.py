from __future__ import annotations

import pytest

from smtpd_filters.checks.strictness import (
    CHECK,
    STRICTNESS,
    Check,
    Findings,
    check_option,
    marks,
)
from smtpd_filters.errors import UnavailableError
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Reject
from smtpd_filters.settings import Settings

REPLY = "550 5.1.8 No such domain"
VERBS = {"off": "proceed", "log": "proceed", "junk": "junk", "reject": "reject"}


# -- one check -----------------------------------------------------------------------------


@pytest.mark.parametrize("action", STRICTNESS)
def test_a_failure_is_what_the_check_is_set_to(action: str) -> None:
    check = Check(action, REPLY)
    found = check.failed("sender a@b.example: no such domain")
    assert found.verb == VERBS[action]
    assert found.text == (REPLY if action == "reject" else "")
    assert found.reason == ("" if action == "off" else "sender a@b.example: no such domain")
    assert check.on is (action != "off")


def test_only_what_is_logged_differs_from_a_plain_proceed() -> None:
    assert Check("off", REPLY).failed("reason") is PROCEED
    assert Check("log", REPLY).failed("reason") is not PROCEED


@pytest.mark.parametrize("action", STRICTNESS)
def test_a_reply_for_one_failure(action: str) -> None:
    found = Check(action, REPLY).failed("reason", "550 5.7.27 Null MX")
    assert found.verb == VERBS[action]
    assert found.text == ("550 5.7.27 Null MX" if action == "reject" else "")


@pytest.mark.parametrize("action", ["junk", "reject"])
def test_a_check_that_could_not_be_made_is_an_error(action: str) -> None:
    with pytest.raises(UnavailableError, match="timed out") as raised:
        Check(action, REPLY).unavailable("timed out")
    assert raised.value.status == "4.4.3"
    with pytest.raises(UnavailableError) as raised:
        Check(action, REPLY).unavailable("timed out", "4.3.5")
    assert raised.value.status == "4.3.5"


def test_a_trial_that_could_not_be_made_changes_nothing() -> None:
    assert Check("log", REPLY).unavailable("timed out") == PROCEED.because("timed out")
    assert Check("off", REPLY).unavailable("timed out") is PROCEED


@pytest.mark.parametrize("action", STRICTNESS)
@pytest.mark.parametrize("reply", ["250 fine", "no code", "550 two\nlines", "550"])
def test_a_bad_reply_is_found_whether_it_is_used_or_not(action: str, reply: str) -> None:
    with pytest.raises(ValueError, match="a reply is"):
        Check(action, reply)


def test_other_words_are_no_checks() -> None:
    with pytest.raises(ValueError, match="off, log, junk, reject"):
        Check("refuse", REPLY)


def test_a_check_that_marks() -> None:
    checks = [Check(action, REPLY) for action in ("off", "log", "reject")]
    assert not marks(checks)
    assert marks([*checks, Check("junk", REPLY)])


def test_it_is_declared_as_a_setting() -> None:
    class Options(Settings):
        fqdn = check_option("reject", "What to do with a name that isn't qualified.")

    assert Options().fqdn == "reject"
    assert Options.options["fqdn"].kind is CHECK
    with pytest.raises(TypeError, match="choose from off, log, junk, reject"):
        Options(fqdn="disconnect")


# -- several -------------------------------------------------------------------------------


def test_nothing_found_is_a_plain_proceed() -> None:
    findings = Findings()
    assert findings.decision() is PROCEED
    findings.failed(Check("off", REPLY), "never mind")
    findings.unavailable(Check("off", REPLY), "never mind")
    assert findings.decision() is PROCEED


@pytest.mark.parametrize("actions", [("log", "junk", "reject"), ("reject", "junk", "log")])
def test_the_strictest_decides_and_every_reason_is_logged(actions: tuple[str, ...]) -> None:
    findings = Findings()
    for action in actions:
        findings.failed(Check(action, REPLY), f"one to {action}")
    assert findings.refused
    reasons = "; ".join(f"one to {action}" for action in actions)
    assert findings.decision() == Reject(REPLY).because(reasons)


def test_the_first_of_two_refusals_is_the_reply() -> None:
    findings = Findings()
    findings.failed(Check("junk", REPLY), "one")
    assert not findings.refused
    findings.failed(Check("reject", "550 5.5.2 first"), "two")
    findings.failed(Check("reject", "550 5.5.2 second"), "three", "550 5.5.2 third")
    assert findings.decision().text == "550 5.5.2 first"


@pytest.mark.parametrize("action", ["junk", "reject"])
@pytest.mark.parametrize("first", [False, True])
def test_what_is_known_decides(action: str, *, first: bool) -> None:
    findings = Findings()
    known, unknown = Check(action, REPLY), Check("reject", REPLY)
    if first:
        findings.failed(known, "no dot")
    findings.unavailable(unknown, "timed out")
    if not first:
        findings.failed(known, "no dot")
    expected = JUNK if action == "junk" else Reject(REPLY)
    assert findings.decision() == expected.because("no dot; timed out")


@pytest.mark.parametrize("action", ["junk", "reject"])
def test_what_is_not_known_is_an_error_where_nothing_decides(action: str) -> None:
    findings = Findings()
    findings.failed(Check("log", REPLY), "no dot")
    findings.unavailable(Check(action, REPLY), "timed out", "4.4.3")
    findings.unavailable(Check(action, REPLY), "refused", "4.3.0")
    with pytest.raises(UnavailableError, match="timed out"):
        findings.decision()


def test_trials_are_logged_and_change_nothing() -> None:
    findings = Findings()
    findings.failed(Check("log", REPLY), "no dot")
    for _ in range(2):
        findings.unavailable(Check("log", REPLY), "timed out")
    assert findings.decision() == PROCEED.because("no dot; timed out")
