"""When a device may fetch, and how fast: the stricter of its own settings and its order."""

import math
from dataclasses import dataclass
from functools import lru_cache

from agent.core.jitter import draw
from agent.core.state import AgentState, Instant
from wire.manners import DAY_S, window_minutes
from wire.twin import DesiredRelease

_DAY_MINUTES = 1440
_TURN, _OPENING = 0, 1
"""Which draw of a device: for its turn after an order, and within each opening of a window."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Why nothing is fetched now, and until when, monotonic; inf: until it is told otherwise."""

    why: str
    until: float


def rate(own: int, ordered: int) -> int:
    """Return the stricter of two caps in bytes a second, where 0 is none."""
    return min(filter(None, (own, ordered)), default=0)


def turn_after(device: str, release: DesiredRelease) -> float:
    """Return how many seconds after an order, or the end of a hold, this device begins."""
    return release.manners.spread_s * draw(_seed(device, release), _TURN)


def wait_before_all(state: AgentState, release: DesiredRelease, now: Instant) -> Wait | None:
    """Return why not even the manifest of a release is fetched now, if it is not."""
    if release.manners.held:
        return Wait("held: its rollout is paused", math.inf)
    if now.mono < state.fetch_at:
        return Wait(f"waiting for its turn within {release.manners.spread_s} s", state.fetch_at)
    return None


def wait_before_files(state: AgentState, release: DesiredRelease, now: Instant) -> Wait | None:
    """Return why no file of a release is fetched now, if none is."""
    wait = wait_before_all(state, release, now)
    if wait is not None:
        return wait
    spans = openings(state.settings.windows, release.manners.windows)
    shift = draw(_seed(state.settings.device, release), _OPENING)
    seconds = _until_open(spans, now.local_s, shift, release.manners.spread_s)
    if seconds == 0.0:
        return None
    return Wait(f"waiting for its window {shown(spans)}", now.mono + seconds)


def _seed(device: str, release: DesiredRelease) -> str:
    return f"{device}/{release.rollout}"


@lru_cache(maxsize=32)
def openings(own: tuple[str, ...], ordered: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Return (first minute, minutes) of each span of the day in which both allow fetching.

    No windows allow all of the day, which is ((0, 1440),). Empty: the two never meet.
    """
    open_at = [_allows(own, minute) and _allows(ordered, minute) for minute in range(_DAY_MINUTES)]
    if all(open_at):
        return ((0, _DAY_MINUTES),)
    starts = [m for m in range(_DAY_MINUTES) if open_at[m] and not open_at[m - 1]]
    return tuple((start, _length(open_at, start)) for start in starts)


def _allows(windows: tuple[str, ...], minute: int) -> bool:
    return not windows or any(_within(minute, *window_minutes(each)) for each in windows)


def _within(minute: int, begin: int, end: int) -> bool:
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def _length(open_at: list[bool], start: int) -> int:
    length = 1
    while open_at[(start + length) % _DAY_MINUTES]:
        length += 1
    return length


def shown(spans: tuple[tuple[int, int], ...]) -> str:
    """Return spans as people write them: `01:00-05:00 or 13:00-14:00`."""
    return " or ".join(f"{_clock(start)}-{_clock(start + length)}" for start, length in spans)


def _clock(minute: int) -> str:
    return "{:02}:{:02}".format(*divmod(minute % _DAY_MINUTES, 60))


def _until_open(
    spans: tuple[tuple[int, int], ...], local_s: float, share: float, spread_s: int
) -> float:
    """Return the seconds until this device may fetch; 0 while it may.

    Within each span it begins later than others by its `share` of the spread, or of half the
    span where that is shorter.
    """
    if spans == ((0, _DAY_MINUTES),):
        return 0.0
    seconds = []
    for start, length in spans:
        since = (local_s - 60 * start) % DAY_S
        shift = share * min(spread_s, 60 * length / 2)
        if shift <= since < 60 * length:
            return 0.0
        seconds.append(shift - since if since < shift else DAY_S - since + shift)
    return min(seconds, default=math.inf)
