"""When to publish each device's Desired again, until the device says that it took it up."""

import heapq
from dataclasses import dataclass

FIRST_S = 10.0
LAST_S = 600.0


@dataclass(slots=True)
class _Parcel:
    revision: int
    taken: int = 0
    wait_s: float = FIRST_S
    due_at: float = 0.0
    again: bool = False
    """What is due is a repeat, pointless once the device took the document up."""


class Courier:
    """The retained documents and their acknowledgements.

    A broker may lose what it retained, so the document is published at every reconnect of either
    side, and to a device that lags again after 10 s, 20 s, ... 10 min.
    """

    def __init__(self) -> None:
        self._parcels: dict[str, _Parcel] = {}
        self._heap: list[tuple[float, str]] = []

    def revised(self, device: str, revision: int, taken: int, now: float) -> None:
        """There is a new document for `device`, which has taken up revision `taken`."""
        self._parcels[device] = _Parcel(revision, taken)
        self._plan(device, now)

    def taken(self, device: str, revision: int) -> None:
        """The device says which revision it took up."""
        parcel = self._parcels.get(device)
        if parcel is not None:
            parcel.taken = revision
            if parcel.again and revision >= parcel.revision:
                parcel.due_at = 0.0

    def woke(self, device: str, now: float) -> None:
        """The device connected (again): if it lags, it gets its document at once."""
        parcel = self._parcels.get(device)
        if parcel is not None and parcel.taken < parcel.revision:
            parcel.wait_s = FIRST_S
            self._plan(device, now)

    def everything(self, now: float) -> None:
        """We connected (again): the broker may have lost every document."""
        for device, parcel in self._parcels.items():
            parcel.wait_s = FIRST_S
            self._plan(device, now)

    def due(self, now: float, limit: int) -> list[str]:
        """Return up to `limit` devices whose document is to be published now."""
        devices: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(devices) < limit:
            at, device = heapq.heappop(self._heap)
            parcel = self._parcels[device]
            if at != parcel.due_at:
                continue
            devices.append(device)
            if parcel.taken < parcel.revision:
                self._plan(device, now + parcel.wait_s, again=True)
                parcel.wait_s = min(2 * parcel.wait_s, LAST_S)
            else:
                parcel.due_at = 0.0
        return devices

    def next_due(self) -> float | None:
        """Return when `due` next has something, or None."""
        return self._heap[0][0] if self._heap else None

    def _plan(self, device: str, at: float, *, again: bool = False) -> None:
        self._parcels[device].due_at = at
        self._parcels[device].again = again
        heapq.heappush(self._heap, (at, device))
