"""Numbers of a report in words: the picture and the command line say the same."""

from collections.abc import Sequence
from datetime import UTC, datetime

from fleet.core.report_views import AccuracyView, Kind, ReleaseReportView, ReportView
from fleet.core.suppression import OTHERS


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as `98.3%`."""
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def between(view: AccuracyView) -> str:
    """Return an interval as `97.1 to 99.0`, or why there is none."""
    if view.low is None or view.high is None:
        return view.note
    return f"{100 * view.low:.1f} to {100 * view.high:.1f}"


def folded(report: ReportView, release: ReleaseReportView) -> str:
    """Return what became of groups of few devices; empty where there is none."""
    few = f"fewer than {plural(report.min_devices, 'device')}"
    if release.cohorts_withheld:
        return f"{plural(release.cohorts_withheld, 'group')} withheld: together {few}"
    together = sum(each.groups for each in release.cohorts if each.groups > 1)
    return f"{OTHERS}: {together} groups, for some are of {few}" if together else ""


def whole(number: int) -> str:
    """Return a count with thin thousands: `4,120`."""
    return f"{number:,}"


def short(number: float) -> str:
    """Return a count in few characters: `4.3 M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= size:
            amount = number / (1e3 if unit == "k" else size)
            return f"{amount:.1f} {unit}" if amount < 100 else f"{amount:.0f} {unit}"
    return whole(int(number))


def milliseconds(value: float | None) -> str:
    """Return a time as `3.4 ms`."""
    if value is None:
        return "-"
    return f"{value:.2g} ms" if value < 10 else f"{value:.0f} ms"


def moment(at: int) -> str:
    """Return a time as `24 Nov 2026 13:00`."""
    return date(at).strftime("%-d %b %Y %H:%M")


def day(at: int) -> str:
    """Return a day as `24 Nov 2026`."""
    return date(at).strftime("%-d %b %Y")


def date(at: int) -> datetime:
    """Return a moment in UTC; one beyond the calendar is its end."""
    return datetime.fromtimestamp(min(max(at, 0), 253_402_300_799), UTC)


def plural(count: int, one: str) -> str:
    """Return `1 device` or `12 devices`."""
    return f"{whole(count)} {one}" if count == 1 else f"{whole(count)} {one}s"


def of_kind(views: Sequence[AccuracyView], kind: Kind) -> AccuracyView:
    """Return the accuracy of one kind; empty where there is none."""
    return next((each for each in views if each.kind == kind), AccuracyView(kind=kind))


def rate(value: float, unit: str) -> str:
    """Return a rate as `97.1%` or `0.31 per hour`."""
    return percent(value) if unit == "share" else f"{value:.3g} {unit}"


def change_in_words(change: float, low: float | None, high: float | None) -> str:
    """Return a change of a share as `-1.2 points (-2.0 to -0.4)`."""
    words = f"{100 * change:+.1f} points"
    if low is None or high is None:
        return words
    return f"{words} ({100 * low:+.1f} to {100 * high:+.1f})"


def p_in_words(p: float | None) -> str:
    """Return a probability as `0.031` or `<0.001`."""
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
