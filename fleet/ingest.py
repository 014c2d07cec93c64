"""Telemetry as it comes in: checked, stored, and only then acknowledged.

    batch --> buffer --commit--> database --> acknowledgement
                                    '--merge, later and in bulk--> hours, days, totals

Whoever is not acknowledged sends again, so nothing is lost that is dropped here; everything that
is dropped is counted. Owned by the controller's loop.
"""

from collections import Counter
from collections.abc import Callable

from fleet.core.ledger import Ledger, Number
from fleet.core.plausible import implausible
from fleet.shell.telemetry import Entry, Message, Telemetry
from wire.telemetry import Batch, DeviceEvent, Health, Item, ScoreWindow

COMMIT_ITEMS = 500
MAX_BUFFERED = 20_000
"""Items that wait for a commit."""

MAX_OF_ONE = 2_000
"""Of those, of one device: it cannot crowd out the others."""

MAX_TOLD = 10
"""Events of one device that are told of at one commit; all are kept."""

OLDEST_S = 40 * 86_400.0
AHEAD_S = 600.0
"""A device's clock is believed from so long ago to so far ahead of ours."""

_KINDS = {ScoreWindow: "windows", Health: "health", DeviceEvent: "events"}


class Ingest:
    """What waits to be committed, and how far each device's telemetry has come in."""

    def __init__(self, telemetry: Telemetry, counts: Callable[[ScoreWindow], bool]) -> None:
        """`counts` says whether a window is of a release that is known."""
        self._telemetry = telemetry
        self._counts = counts
        self._ledgers = {id: Ledger.load(state) for id, state in telemetry.ledgers()}
        self._waiting: list[tuple[Message, list[Number]]] = []
        """With the numbers of all its items, repeats too."""
        self._waiting_of: Counter[str] = Counter()
        """Items by device."""
        self._items = 0
        self.received: Counter[str] = Counter()
        """Items since start, by kind."""
        self.dropped: Counter[str] = Counter()
        """Items since start, by why they count for nothing."""
        self.missing = 0
        """Numbers that were passed over since start."""
        self.clock_odd = 0
        """Items since start whose device's clock could not be believed."""

    @property
    def due(self) -> bool:
        """Whether so much waits that it is to be committed at once."""
        return self._items >= COMMIT_ITEMS

    def ledger(self, device: str) -> Ledger:
        """Return how far a device's telemetry has come in; not to be changed."""
        return self._ledgers.get(device) or Ledger()

    def take(self, batch: Batch, body: bytes, now: float) -> bool:
        """Take in a batch, and how it travelled; return whether there was room for it."""
        items = batch.items()
        device = batch.device
        if (
            self._items + len(items) > MAX_BUFFERED
            or self._waiting_of[device] + len(items) > MAX_OF_ONE
        ):
            self.dropped["flood"] += len(items)
            return False
        ledger = self.ledger(device)
        entries = []
        for item in items:
            if ledger.repeats(item.boot, item.seq):
                self.dropped["repeat"] += 1
            else:
                entries.append(self._entry(item, now))
        numbers = [number_of(item) for item in items]
        message = Message(device, now, body, entries, complete=batch.complete)
        self._waiting.append((message, numbers))
        self._waiting_of[device] += len(items)
        self._items += len(items)
        return True

    def _entry(self, item: Item, now: float) -> Entry:
        self.received[_KINDS[type(item)]] += 1
        said = item.end if isinstance(item, ScoreWindow) else item.at
        likely = now - OLDEST_S <= said <= now + AHEAD_S
        self.clock_odd += not likely
        # By the device's clock, if that can be true.
        at = said if likely else int(now)
        known = True
        if isinstance(item, ScoreWindow):
            reason = "release" if not self._counts(item) else implausible(item)
            if reason:
                self.dropped[reason] += 1
                known = False
        return Entry(item, at, known)

    def commit(self) -> dict[str, int]:
        """Store what waits; return what to acknowledge, by device.

        Raises:
            OSError: the disk refuses; everything waits on.
        """
        waiting = self._waiting
        if not waiting:
            return {}
        ledgers: dict[str, Ledger] = {}
        for message, numbers in waiting:
            ledger = ledgers.get(message.device)
            if ledger is None:
                ledger = ledgers[message.device] = self.ledger(message.device).copy()
            ledger.note(numbers, complete=message.complete)
        states = {id: ledger.dump() for id, ledger in ledgers.items()}
        self._telemetry.commit([message for message, _ in waiting], states)
        for id, ledger in ledgers.items():
            self.missing += ledger.missing - self.ledger(id).missing
        self._ledgers.update(ledgers)
        self._waiting = []
        self._waiting_of.clear()
        self._items = 0
        return {id: ledger.acked for id, ledger in ledgers.items()}

    def events(self) -> list[DeviceEvent]:
        """Return what the waiting batches tell of, for people; of a flood only the first."""
        told: Counter[str] = Counter()
        found = []
        for message, _ in self._waiting:
            for entry in message.entries:
                item = entry.item
                if isinstance(item, DeviceEvent) and told[item.device] < MAX_TOLD:
                    told[item.device] += 1
                    found.append(item)
        return found


def number_of(item: Item) -> Number:
    """Return the place of an item in its device's sequence."""
    first = None if isinstance(item, DeviceEvent) else item.first
    return Number(item.boot, first or item.seq, item.seq)
