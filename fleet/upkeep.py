"""What alerts read of the fleet, and what they do to it."""

from collections import Counter
from collections.abc import Mapping

from fleet.core.query import DeviceCounts, Query, Slice, Step
from fleet.shell.telemetry import Telemetry

MAX_GAPS = 100_000
"""Counted at one look."""


class Figures:
    """Telemetry as the rules of alerts read it: from any thread, each answer of one moment."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Nothing is read yet."""
        self._telemetry = telemetry

    def slices(self, query: Query, step: Step | None = None) -> list[Slice]:
        """Return sums by release, variant, group and step."""
        return self._telemetry.slices(query, step)

    def devices(self, query: Query) -> list[DeviceCounts]:
        """Return counts by device, release and variant."""
        return self._telemetry.devices(query)

    def gaps(self, since: int) -> Mapping[str, int]:
        """Return how many gaps each device told of."""
        found = self._telemetry.events(since=since, kind="gap", limit=MAX_GAPS)
        return Counter(row.event.device for row in found)
