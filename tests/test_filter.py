"""The errors of an invalid filter, which are raised at its definition and name it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import (
    PROCEED,
    Answer,
    Disconnect,
    Filter,
    FinalAnswer,
    Headers,
    Junk,
    Message,
    ParameterAnswer,
    Proceed,
    Registration,
    Reject,
    Rewrite,
    Session,
    Settings,
)
from smtpd_filters.handlers import CONTENT
from smtpd_filters.protocol.vocabulary import HANDLERS, PHASES
from smtpd_filters.session import FIELDS, NAMED_ONLY

if TYPE_CHECKING:
    from collections.abc import Callable


def define(name: str = "Mine", /, **members: Any) -> type[Filter]:
    members = {"__module__": "policies", "__qualname__": name, **members}
    return type(name, (Filter,), members)


def handler(argument: str | None = None, returns: object = "Proceed") -> Callable[..., object]:
    if argument is None:

        def plain(self: object, session: object) -> object:  # noqa: ARG001
            return PROCEED

        plain.__annotations__["return"] = returns
        return plain

    def with_argument(self: object, session: object, argument: object) -> object:  # noqa: ARG001
        return PROCEED

    with_argument.__annotations__["return"] = returns
    return with_argument


def fitting(name: str, returns: object = "Proceed") -> Callable[..., object]:
    argument = "content" if name in CONTENT else HANDLERS[name].argument
    return handler(argument or None, returns)


EVERY = (*HANDLERS, *CONTENT)


@pytest.mark.parametrize("name", EVERY)
def test_a_handler_of_every_phase(name: str) -> None:
    cls = define(**{name: fitting(name)})
    assert set(cls.handlers) == {name}
    assert cls.returns == {name: frozenset({Proceed})}
    assert cls().registered == {name}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("rcptto", "rcpt_to"),
        ("rcpt_too", "rcpt_to"),
        ("mailfrom", "mail_from"),
        ("on_connect", "connect"),
        ("conect", "connect"),
        ("header", "headers"),
        ("messages", "message"),
        ("comit", "commit"),
        ("set_up", "setup"),
        ("closed", "close"),
    ],
)
def test_a_misspelt_handler_gets_a_suggestion(wrong: str, right: str) -> None:
    with pytest.raises(TypeError) as error:
        define(**{wrong: handler()})
    assert str(error.value).startswith("filter 'mine' (policies.Mine): ")
    assert f"{wrong!r} is not the handler of a phase; did you mean {right!r}?" in str(error.value)


@pytest.mark.parametrize("name", ["data_line", "zzzzzz"])
def test_a_handler_of_no_phase(name: str) -> None:
    with pytest.raises(TypeError, match=rf"policies\.Mine.*'{name}' is not the handler of a phase"):
        define(**{name: handler()})


def test_a_misspelt_coroutine_and_static_method() -> None:
    async def rcptto(self: object, session: object) -> Proceed:  # noqa: ARG001
        return PROCEED

    with pytest.raises(TypeError, match="did you mean 'rcpt_to'"):
        define(rcptto=rcptto)
    with pytest.raises(TypeError, match="did you mean 'rcpt_to'"):
        define(rcptto=staticmethod(handler()))


def test_what_is_no_handler_may_be_there() -> None:
    cls = define(
        _helper=handler(),
        Helper=type("Helper", (), {}),
        LIMIT=3,
        limit=property(lambda self: 3),  # noqa: ARG005
    )
    assert cls.handlers == {}


def test_handlers_are_inherited() -> None:
    base = define("Base", connect=handler())
    cls: type[Filter] = type("Derived", (base,), {"commit": handler(returns="FinalAnswer")})
    assert set(cls.handlers) == {"connect", "commit"}
    assert cls.name == "derived"


@pytest.mark.parametrize("name", [name for name in EVERY if name != "connect"])
def test_the_wrong_parameters(name: str) -> None:
    takes = CONTENT[name] if name in CONTENT else HANDLERS[name].argument
    with pytest.raises(TypeError) as error:
        define(**{name: handler(None if takes else "surplus")})
    expected = f"(self, session, {takes})" if takes else "(self, session)"
    assert str(error.value) == f"filter 'mine' (policies.Mine): {name} takes {expected}"


def test_parameters_that_are_never_passed() -> None:
    def connect(self: object, session: object, *, extra: object) -> Proceed:  # noqa: ARG001
        return PROCEED

    with pytest.raises(TypeError, match=r"connect takes \(self, session\)"):
        define(connect=connect)


@pytest.mark.parametrize("value", [staticmethod(len), property(len), 3, None, "text"])
def test_an_invalid_handler(value: object) -> None:
    with pytest.raises(TypeError, match=r"policies\.Mine\): connect takes \(self, session\)"):
        define(connect=value)


@pytest.mark.parametrize("phase", PHASES.values(), ids=lambda phase: phase.name)
@pytest.mark.parametrize("kind", [Proceed, Junk, Reject, Disconnect, Rewrite])
def test_only_what_its_phase_allows(phase: Any, kind: type[Any]) -> None:
    made = fitting(phase.handler, kind.__name__)
    if kind in phase.legal:
        assert define(**{phase.handler: made}).returns[phase.handler] == {kind}
        return
    allowed = ", ".join(sorted(each.__name__ for each in phase.legal))
    with pytest.raises(TypeError) as error:
        define(**{phase.handler: made})
    assert str(error.value).endswith(
        f"{phase.handler} may not return {kind.__name__}, only {allowed}"
    )


@pytest.mark.parametrize("name", CONTENT)
def test_a_message_is_not_rewritten_by_decision(name: str) -> None:
    assert define(**{name: fitting(name, "Answer")}).returns[name] == {
        Proceed,
        Junk,
        Reject,
        Disconnect,
    }
    with pytest.raises(TypeError, match=f"{name} may not return Rewrite, only"):
        define(**{name: fitting(name, "ParameterAnswer")})


@pytest.mark.parametrize(
    "returns",
    [
        "Proceed | Junk",
        "Junk|Proceed",
        "decisions.Proceed | smtpd_filters.Junk",
        Proceed | Junk,
    ],
)
def test_annotations_as_they_are_written(returns: object) -> None:
    assert define(connect=handler(returns=returns)).returns["connect"] == {Proceed, Junk}


@pytest.mark.parametrize(
    "returns",
    [
        "Proceed | Junk | Awaitable[Proceed | Junk]",
        "Proceed | Awaitable[Junk]",
        "collections.abc.Awaitable[decisions.Proceed | Junk]",
        "Awaitable[Decision]",
        "Awaitable",
        "Coroutine[Any, Any, Decision]",
        Proceed | Awaitable[Proceed | Junk],
        Awaitable[Proceed | Junk],
        Coroutine[Any, Any, Proceed],
    ],
)
def test_a_handler_that_waits_is_a_coroutine(returns: object) -> None:
    with pytest.raises(TypeError) as error:
        define(connect=handler(returns=returns), data=handler())
    assert str(error.value) == (
        "filter 'mine' (policies.Mine): connect may wait; "
        'write "async def connect" and "-> Decision"'
    )


async def coroutine(self: object, session: object) -> Proceed:  # noqa: ARG001
    return PROCEED


def wrapping(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: object) -> object:
        return function(*arguments)

    return wrapper


def bare(function: Any) -> Any:
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    del wrapper.__annotations__["return"]
    return wrapper


def awaiting(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*arguments: object) -> object:
        return function(*arguments)

    return wrapper


@pytest.mark.parametrize(
    ("made", "waits"),
    [
        (handler(), False),
        (coroutine, True),
        (wrapping(handler()), False),
        (wrapping(coroutine), True),
        (wrapping(wrapping(coroutine)), True),
        (awaiting(handler()), True),
        # What it returns then is found at run time.
        (bare(coroutine), False),
    ],
)
def test_which_filters_wait(made: Any, *, waits: bool) -> None:
    assert define(connect=made)().waits is waits


def test_what_a_decorator_wraps_is_checked() -> None:
    assert define(connect=wrapping(handler(returns="Reject"))).returns["connect"] == {Reject}
    with pytest.raises(TypeError, match=r"connect takes \(self, session\)"):
        define(connect=wrapping(handler("surplus")))
    with pytest.raises(TypeError, match="commit may not return Junk, only"):
        define(commit=wrapping(handler(returns="Junk")))


def test_what_a_decorator_hides_may_be_all_that_the_phase_allows() -> None:
    assert define(commit=bare(handler())).returns["commit"] == PHASES["commit"].legal
    assert define(headers=bare(handler("headers"))).returns["headers"] >= {Junk, Reject}


@pytest.mark.parametrize(
    "returns", ["Decision", "Verdict", "decisions.Decision", "Proceed | Verdict", "Literal['x']"]
)
def test_an_alias_means_all_that_the_phase_allows(returns: str) -> None:
    for name in ("connect", "commit"):
        made = define(**{name: fitting(name, returns)})
        assert made.returns[name] == PHASES[name].legal


@pytest.mark.parametrize(
    ("registration", "registered", "waits"),
    [
        (Registration(), {"connect", "commit"}, True),
        (Registration({"connect"}), {"connect"}, False),
        (Registration(()), set(), False),
        (Registration(waits=False), {"connect", "commit"}, False),
    ],
)
def test_registration_in_place_of_all_that_the_class_defines(
    registration: Registration, registered: set[str], *, waits: bool
) -> None:
    made = define(connect=handler(), commit=coroutine)()
    made.registration = registration
    assert made.registered == registered
    assert made.waits is waits


def test_a_filter_with_refresh_needs_a_loop_whatever_is_registered() -> None:
    async def refresh(self: object) -> None: ...

    def link_disconnect(self: object, session: object) -> None: ...

    made = define(connect=handler(), refresh=refresh, link_disconnect=link_disconnect)()
    assert made.events == {"refresh", "link_disconnect"}
    made.registration = Registration(waits=False)
    assert made.waits
    without = Registration(events={"link_disconnect"})
    made.registration = without
    assert made.events == {"link_disconnect"}
    assert not any([made.waits])


@pytest.mark.parametrize("name", ["setup", "link_connect", "link_identify", "link_disconnect"])
def test_an_event_that_is_never_awaited(name: str) -> None:
    async def event(self: object) -> None: ...

    with pytest.raises(TypeError, match=f"policies.Mine.: {name} must be a plain method"):
        define(**{name: event})


@pytest.mark.parametrize("name", ["refresh", "close"])
def test_an_event_that_is_awaited(name: str) -> None:
    def event(self: object) -> None: ...

    with pytest.raises(TypeError, match=f"policies.Mine.: {name} must be async def"):
        define(**{name: event})


def test_a_single_class_as_annotation() -> None:
    assert define(connect=handler(returns=Reject)).returns["connect"] == {Reject}


@pytest.mark.parametrize(
    "returns",
    ["str", "Proceed | None", None, int, "", Proceed | None, "bool | Decision", "object"],
)
def test_an_annotation_that_is_no_decision(returns: object) -> None:
    with pytest.raises(
        TypeError, match=r'connect is annotated "-> .*", but must return a Decision'
    ):
        define(connect=handler(returns=returns))


def test_no_annotation_at_all() -> None:
    made = handler()
    del made.__annotations__["return"]
    with pytest.raises(TypeError, match='connect has no return annotation; write "-> Decision"'):
        define(connect=made)


def test_outcomes_are_those_of_every_phase() -> None:
    assert define(connect=handler()).outcomes() == ("proceed", "junk", "tempfail")
    assert define(connect=handler(), commit=handler()).outcomes() == ("proceed", "tempfail")
    assert define(headers=handler("headers")).outcomes() == ("proceed", "junk", "tempfail")
    assert define().outcomes() == ("proceed", "junk", "tempfail")


@pytest.mark.parametrize("name", ["commit", "rset", "quit"])
def test_an_outcome_that_a_phase_does_not_have(name: str) -> None:
    with pytest.raises(TypeError, match=r"policies\.Mine\): on_error 'junk' is not one of"):
        define(on_error="junk", **{name: handler()})


def test_an_invalid_outcome() -> None:
    with pytest.raises(TypeError, match="on_error 'reject' is not one of"):
        define(on_error="reject")


@pytest.mark.parametrize("name", ["", "two words", "näme", "a/b", "a|b", "-"])
def test_a_name_that_makes_no_executable(name: str) -> None:
    with pytest.raises(TypeError, match=r"policies\.Mine.*letters, digits and hyphens"):
        type("Mine", (Filter,), {"__module__": "policies", "name": name})


def test_names() -> None:
    class ItsOwn(Filter):
        name = "its-own2"

    assert define().name == "mine"
    assert ItsOwn.name == "its-own2"
    assert Filter.name == ""


def test_the_first_line_describes() -> None:
    assert define(__doc__="\n  First.\n\n  More.").described() == "First."
    assert define(__doc__=None).described() == ""


def test_it_asks_for_what_may_be_read() -> None:
    assert define(connect=handler())().required_reports() == set()
    helo = define(helo=handler("identity"))().required_reports()
    assert helo == {"link-greeting", "link-tls"}
    mail = define(mail_from=handler("address"))().required_reports()
    assert mail == {"link-greeting", "link-identify", "link-tls", "link-auth"}
    assert define(commit=handler())().required_reports() == set(FIELDS) - NAMED_ONLY
    assert define(headers=handler("headers"))().required_reports() == set(FIELDS) - NAMED_ONLY


def test_an_event_may_read_what_came_before_it() -> None:
    def event(self: object, session: object) -> None: ...

    connects = define(connect=handler(), link_connect=event)
    assert connects().required_reports() == set()
    identifies = define(connect=handler(), link_identify=event)
    assert identifies().required_reports() == {"link-greeting", "link-identify", "link-tls"}
    disconnects = define(connect=handler(), link_disconnect=event)
    assert disconnects().required_reports() == set(FIELDS) - NAMED_ONLY


@pytest.mark.parametrize("reports", [{"link-auth"}, set()])
def test_it_asks_for_the_reports_that_it_registers(reports: set[str]) -> None:
    made = define(commit=handler())()
    made.registration = Registration(reports=reports)
    assert made.required_reports() == reports


def test_handlers_taken_away_need_no_reports() -> None:
    made = define(connect=handler(), commit=handler())()
    made.registration = Registration({"connect"})
    assert made.required_reports() == set()


class Whole(Filter):
    """Has every handler, annotated as an author would."""

    def connect(self, session: Session) -> Answer:
        raise NotImplementedError

    async def helo(self, session: Session, identity: str) -> ParameterAnswer:
        raise NotImplementedError

    def ehlo(self, session: Session, identity: str) -> ParameterAnswer:
        raise NotImplementedError

    def starttls(self, session: Session) -> Answer:
        raise NotImplementedError

    def auth(self, session: Session, credentials: str) -> ParameterAnswer:
        raise NotImplementedError

    def mail_from(self, session: Session, address: str) -> ParameterAnswer:
        raise NotImplementedError

    def rcpt_to(self, session: Session, address: str) -> ParameterAnswer:
        raise NotImplementedError

    def data(self, session: Session) -> Answer:
        raise NotImplementedError

    def headers(self, session: Session, headers: Headers) -> Answer:
        raise NotImplementedError

    async def message(self, session: Session, message: Message) -> Answer:
        raise NotImplementedError

    def commit(self, session: Session) -> FinalAnswer:
        raise NotImplementedError

    def rset(self, session: Session) -> FinalAnswer:
        raise NotImplementedError

    def noop(self, session: Session, text: str) -> Answer:
        raise NotImplementedError

    def quit(self, session: Session) -> Proceed | Disconnect:
        raise NotImplementedError


def test_every_handler_may_say_all_that_its_phase_allows() -> None:
    assert set(Whole.handlers) == set(EVERY)
    for phase in PHASES.values():
        assert Whole.returns[phase.handler] == phase.legal


def test_settings_under_another_name_are_noticed() -> None:
    with pytest.raises(TypeError, match="in a class Options, not Flags"):

        class Named(Filter):
            class Flags(Settings):
                pass

            def quit(self, _session: Session) -> Proceed:
                return PROCEED


@pytest.mark.parametrize("handler", ["rcpt_to", "commit", "quit"])
def test_what_to_annotate_is_in_the_error(handler: str) -> None:
    def says(self: Filter, session: Session):  # type: ignore[no-untyped-def]  # noqa: ANN202, ARG001
        return PROCEED

    def says_of(self: Filter, session: Session, address: str):  # type: ignore[no-untyped-def]  # noqa: ANN202, ARG001
        return PROCEED

    body = {handler: says_of if handler == "rcpt_to" else says}
    with pytest.raises(TypeError, match=rf'{handler} has no .* write "-> Decision"$'):
        type("Bare", (Filter,), body)


def test_options_are_settings() -> None:
    with pytest.raises(
        TypeError, match=r"^filter 'bare' .*: Options is declared as class Options\(Settings\)$"
    ):

        class Bare(Filter):
            """Has options without flags."""

            class Options:
                limit = 3
