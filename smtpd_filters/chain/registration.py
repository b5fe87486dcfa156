"""The phases and reports that a chain registers, and the checks of what its filters declare."""

from __future__ import annotations

from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import legal_outcomes
from smtpd_filters.handlers import check_bounds
from smtpd_filters.protocol.vocabulary import DATA_LINE, PHASES, REPORTS
from smtpd_filters.session import FIELDS, TOGETHER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smtpd_filters.filter import Filter, OnError
    from smtpd_filters.protocol.vocabulary import Phase


def required_phases(
    handled: Iterable[Phase], filters: Sequence[Filter], *, content: bool
) -> tuple[str, ...]:
    """Return the phases to register, of which `handled` have handlers.

    `content` is whether messages are judged.
    """
    phases = tuple(phase.name for phase in handled)
    if content or any(each.registration.data for each in filters):
        phases += ("data-line",)
    if content and "commit" not in phases:
        # A refused message, and one that could not be stored, is refused at commit.
        phases += ("commit",)
    for tap in (tap for each in filters for tap in each.registration.taps):
        phases += tuple(sorted(tap.phases.difference(phases)))
    return phases


def required_reports(filters: Sequence[Filter]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the fields that a session needs, and the reports that fill them."""
    read = {report for each in filters for report in each.required_reports()}
    for event, report in (("link_identify", "link-identify"), ("link_auth", "link-auth")):
        if any(event in each.events for each in filters):
            read.add(report)
    known = [report for report in FIELDS if report in read]
    empty = {field for each in filters for field in each.fields_without_reports()}
    fields = tuple(field for report in known for field in FIELDS[report])
    fields += tuple(sorted(empty.difference(fields)))
    reports: tuple[str, ...] = ("link-connect", "link-disconnect")
    for report in known:
        reports += (report, *TOGETHER.get(report, ()))
    for tap in (tap for each in filters for tap in each.registration.taps):
        reports += tuple(sorted(tap.reports.difference(reports)))
    return fields, reports


def check_signatures(filters: Iterable[Filter]) -> None:
    """Raise ConfigError for a filter that edits what one ahead of it has signed."""
    signer = ""
    for filter_ in filters:
        if signer and filter_.edits_signed:
            raise ConfigError(
                f"{filter_.name} must be ahead of {signer}, whose signature should cover its edits"
            )
        signer = filter_.name if filter_.signs else signer


def check_filter(filter_: Filter, on_error: OnError) -> None:
    """Raise TypeError or ConfigError for a registration or an outcome that a filter can't have."""
    unknown = filter_.registered - filter_.handlers.keys()
    if unknown:
        raise TypeError(f"filter {filter_.name!r}: no handler for {sorted(unknown)}")
    legal = legal_outcomes(filter_.registered)
    if on_error not in legal:
        raise ConfigError(
            f"filter {filter_.name!r}: on-error {on_error!r} is not one of {', '.join(legal)}"
        )
    unknown = filter_.required_reports() - FIELDS.keys()
    if unknown:
        known = sorted(FIELDS)
        raise TypeError(f"filter {filter_.name!r}: no report {sorted(unknown)}, of {known}")
    registration = filter_.registration
    if registration.points is not None:
        check_bounds(registration.points, f"filter {filter_.name!r}")
    _check_names(filter_, "report", registration.outgoing, REPORTS, "outgoing")
    for tap in registration.taps:
        _check_names(filter_, "report", tap.reports, REPORTS, "a tap")
        _check_names(filter_, "phase", tap.phases, (*PHASES, DATA_LINE), "a tap")
    unknown = filter_.events - filter_.defined_events()
    if unknown:
        raise TypeError(f"filter {filter_.name!r}: no method for {sorted(unknown)}")


def _check_names(
    filter_: Filter, kind: str, names: Iterable[str], known: Iterable[str], use: str
) -> None:
    """Raise TypeError for a name that smtpd doesn't know; it would end on its registration."""
    if unknown := set(names).difference(known):
        shown = sorted(unknown, key=repr)
        raise TypeError(f"filter {filter_.name!r}: no {kind} {shown} for {use}, of {sorted(known)}")
