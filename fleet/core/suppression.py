"""Groups of few devices are never told apart: they are added up until enough are together.

A number about three devices is nearly one about each of them. To leave a small group out does not
hide it: it is what the others lack of the whole. So small groups become one row, and the next
smallest join them where they alone are too few. What all rows of a table say, added or subtracted
in any way, is of so many devices at least.
"""

from collections.abc import Collection, Mapping

OTHERS = "(others)"
MIN_DEVICES = 5
MOST = 1_000_000

_REST = (OTHERS, "(other)")
"""Never groups of their own: no device calls itself that and is shown alone. The latter is what
the controller calls values of a label beyond those that it tells apart."""


def fold(groups: Mapping[str, Collection[str]], least: int) -> dict[str, str]:
    """Return under which name each group is shown, given its devices.

    Nothing at all comes back where all of them together are fewer than `least` devices.
    """
    small = {name for name, devices in groups.items() if len(devices) < least or name in _REST}
    rest = sorted(groups.keys() - small, key=lambda name: (-len(groups[name]), name))
    together = {device for name in small for device in groups[name]}
    while small and len(together) < least and rest:
        small.add(name := rest.pop())
        together.update(groups[name])
    if small and len(together) < least:
        return {}
    return {name: OTHERS if name in small else name for name in groups}
