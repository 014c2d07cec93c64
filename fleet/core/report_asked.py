"""What a report is asked for, in words: times, and what devices are told apart by."""

import re
from collections.abc import Collection
from datetime import UTC, datetime

from fleet.core.cohort import LIST_DEVICES, nearest
from fleet.core.report import Frame
from fleet.core.suppression import MIN_DEVICES, MOST
from fleet.core.views import Refusal

MAX_DAYS = 400
SINCE = "30d"

_BACK = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_EXAMPLE = "for example: --since 30d, --since 2026-11-01 --until 2026-11-08T12:00"


def moment_of(text: str, now: int) -> int:
    """Return the unix seconds of `now`, `30d` (that long ago), `2026-11-01`, `2026-11-01T12:00`.

    Dates without a zone are in UTC. Plain digits are unix seconds.

    Raises:
        ValueError: it is written otherwise, or before 1970.
    """
    wrong = f"expected 30d, 12h, 2026-11-01 or 2026-11-01T12:00 (UTC), got {text[:40]!r}"
    if text == "now":
        return now
    back = _BACK.fullmatch(text)
    if back is not None:
        return max(0, now - int(back[1]) * _UNITS[back[2]])
    if text.isascii() and text.isdigit() and len(text) in (9, 10):
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(wrong) from None
    if len(text) < len("2026-11-01") or at.year < 1970:
        raise ValueError(wrong)
    return max(0, int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()))


def frame(  # noqa: PLR0917 - as they are asked for
    model: str,
    version: int | None,
    by: str | None,
    since: str,
    until: str,
    now: int,
    labels: Collection[str],
    min_devices: int = MIN_DEVICES,
    hours_from: int = 0,
) -> Frame:
    """Return the frame of a report; `labels` are the keys that any device has.

    Raises:
        Refusal: 422, a time or a label that makes no sense.
    """
    begin, end = times(since, until, now)
    check_by(by, labels)
    check_min_devices(min_devices)
    return Frame.over(model, version, by, begin, end, now, min_devices, hours_from)


def times(since: str, until: str, now: int) -> tuple[int, int]:
    """Return both as unix seconds (422: they make no sense, or are too far apart)."""
    found = {}
    for name, text in (("since", since), ("until", until)):
        try:
            found[name] = moment_of(text, now)
        except ValueError as error:
            raise Refusal(422, f"{name}: {error}", _EXAMPLE) from None
    if not found["since"] < found["until"]:
        raise Refusal(
            422, f"since: expected a time before until, got {since} and {until}", _EXAMPLE
        )
    days = (found["until"] - found["since"]) / 86_400
    if days > MAX_DAYS:
        got = f"got {days:.0f}"
        raise Refusal(422, f"since: expected at most {MAX_DAYS} days in a report, {got}", _EXAMPLE)
    return found["since"], found["until"]


def check_by(by: str | None, labels: Collection[str]) -> None:
    """Refuse what devices cannot be told apart by (422)."""
    known = {"variant", "device", *labels}
    if by is not None and by not in known:
        raise Refusal(
            422,
            f"by: expected device, variant or a label of devices, got {by[:40]!r}"
            f"{nearest(by, known)}",
            LIST_DEVICES,
        )


def check_min_devices(least: int) -> None:
    """Refuse a number of devices that is none (422)."""
    if not 1 <= least <= MOST:
        raise Refusal(
            422,
            f"min-devices: expected 1 to {MOST}, got {least}",
            f"--min-devices {MIN_DEVICES}",
        )
