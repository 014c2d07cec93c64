import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from agent.shell.clock import Clock, seconds_of_day

HOUR = 3600


def at(year: int, month: int, day: int, hour: int, minute: int = 0) -> float:
    return datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("wall", "zone", "expected"),
    [
        (at(2026, 1, 10, 0, 30), "Europe/Berlin", 1.5 * HOUR),
        (at(2026, 7, 10, 23, 30), "Europe/Berlin", 1.5 * HOUR),
        (at(2026, 7, 10, 0, 30), "America/New_York", 20.5 * HOUR),
        (at(2026, 7, 10, 0, 30) + 0.25, "UTC", 0.5 * HOUR + 0.25),
        # The clocks go from 02:00 to 03:00 and, in autumn, from 03:00 back to 02:00.
        (at(2026, 3, 29, 1, 0), "Europe/Berlin", 3 * HOUR),
        (at(2026, 10, 25, 1, 0), "Europe/Berlin", 2 * HOUR),
    ],
)
def test_the_time_of_the_day_is_what_a_clock_on_the_wall_shows(
    wall: float, zone: str, expected: float
) -> None:
    assert seconds_of_day(wall, ZoneInfo(zone)) == pytest.approx(expected, abs=1e-3)


def test_without_a_zone_it_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-5")
    time.tzset()
    try:
        noon = seconds_of_day(at(2026, 7, 10, 12), None)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert noon == 17 * HOUR


def test_all_clocks_of_a_moment_are_read_together() -> None:
    now = Clock("Asia/Tokyo").now()

    assert abs(now.mono - time.monotonic()) < 5
    assert abs(now.wall - time.time()) < 5
    since_midnight = (now.wall + 9 * HOUR) % 86_400
    assert now.local_s == pytest.approx(since_midnight, abs=0.01)
