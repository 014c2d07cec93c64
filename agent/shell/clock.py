"""What time it is: for deadlines, for reports, and of the day where the device stands."""

import time
from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo

from agent.core.state import Instant


class Clock:
    """The machine's clocks, the time of day in `timezone` or, where that is empty, the system's."""

    def __init__(self, timezone: str = "") -> None:
        self._zone: tzinfo | None = ZoneInfo(timezone) if timezone else None

    def now(self) -> Instant:
        """Return this moment."""
        wall = time.time()
        return Instant(time.monotonic(), wall, seconds_of_day(wall, self._zone))


def seconds_of_day(wall: float, zone: tzinfo | None) -> float:
    """Return what a clock on the wall in `zone` shows, in seconds since 00:00.

    On the days when clocks are changed it is that of the clock, not the time passed.
    """
    if zone is None:
        local = time.localtime(wall)
        return 3600.0 * local.tm_hour + 60 * local.tm_min + local.tm_sec + wall % 1
    day = datetime.fromtimestamp(wall, zone)
    return 3600.0 * day.hour + 60 * day.minute + day.second + day.microsecond / 1e6
