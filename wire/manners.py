"""How considerately a device is to fetch: how fast, when in its day, and not all at once."""

import re
from typing import Annotated

from wire.codec import Part
from wire.schema import AfterValidator, Field

DAY_S = 86_400
MAX_WINDOWS = 8
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def window_minutes(text: str) -> tuple[int, int]:
    """Return the first minute of the day of a window `01:00-05:00`, and the first one after it.

    The second is the lower one when the window wraps midnight.

    Raises:
        ValueError: it is written otherwise, or begins when it ends.
    """
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a window of the day such as 01:00-05:00, got {text[:40]!r}")
    begin, end = 60 * int(match[1]) + int(match[2]), 60 * int(match[3]) + int(match[4])
    if begin == end:
        raise ValueError(f"expected a window that begins and ends at two times, got {text}")
    return begin, end


def _checked(text: str) -> str:
    window_minutes(text)
    return text


Window = Annotated[str, AfterValidator(_checked)]
"""Times of the day on the device's clock, `HH:MM-HH:MM`; `22:00-04:00` wraps midnight."""
Windows = Annotated[tuple[Window, ...], Field(max_length=MAX_WINDOWS)]
Spread = Annotated[int, Field(ge=0, le=7 * DAY_S)]
BytesPerSecond = Annotated[int, Field(ge=0, le=2**40)]


class Manners(Part):
    """What an order asks of a device while it fetches. The device's own settings hold as well."""

    bytes_per_s: BytesPerSecond = 0
    """0: as fast as it can."""
    windows: Windows = ()
    """When files may be fetched; none: at any time."""
    spread_s: Spread = 0
    """Each device begins at a moment of its own within this long."""
    held: bool = False
    """Fetch nothing until told otherwise."""
