"""How far a device's telemetry has come in: when it may forget what it queued."""

import json
from collections.abc import Sequence
from typing import NamedTuple

_BOOTS = 16
_AHEAD = 64


class Number(NamedTuple):
    """The place of an item in its device's sequence: `seq`, standing for `first` to `seq`."""

    boot: str
    first: int
    seq: int


class Ledger:
    """The acknowledgement of one device's outbox.

    A device numbers its items on and on, and forgets everything up to what is acknowledged. Its
    batches say themselves whether it holds anything else up to their last number: then all up to
    there is acknowledged, and numbers that never came were merged into others, or are *missing*.
    A batch that overtook others acknowledges nothing.

    A device whose disk was wiped begins at 1 again: an old number from a boot that was never
    heard of starts the ledger anew. If that was a mistake, an acknowledgement that is too low is
    only sent again, and repeats are known by (device, boot, seq) where they are kept.
    """

    def __init__(self, acked: int = 0, boots: tuple[str, ...] = (), missing: int = 0) -> None:
        self.acked = acked
        self.missing = missing
        """Numbers that were passed over, ever: dropped by the device, or lost with its disk."""
        self._boots = dict.fromkeys(boots[-_BOOTS:])
        self._ahead: dict[int, None] = {}

    def restarts(self, boot: str, seq: int) -> bool:
        """Return whether this item shows that the device begins to count anew."""
        return seq <= self.acked and boot not in self._boots

    def repeats(self, boot: str, seq: int) -> bool:
        """Return whether this item was acknowledged before."""
        return seq <= self.acked and boot in self._boots

    def note(self, numbers: Sequence[Number], *, complete: bool) -> None:
        """Take in a committed batch: the numbers of its items, ascending."""
        for boot, _, seq in numbers:
            if self.restarts(boot, seq):
                self.acked = 0
                self._ahead.clear()
            self._boots[boot] = None
        while len(self._boots) > _BOOTS:
            del self._boots[next(iter(self._boots))]
        if complete:
            self._pass(numbers)
            return
        self._ahead.update(dict.fromkeys(number.seq for number in numbers))
        while len(self._ahead) > _AHEAD:
            del self._ahead[next(iter(self._ahead))]

    def _pass(self, numbers: Sequence[Number]) -> None:
        if not self.acked and numbers:
            # What came before we were there is nothing that we miss.
            self.acked = numbers[0].first - 1
        for _, first, seq in numbers:
            if seq > self.acked:
                skipped = range(self.acked + 1, max(first, self.acked + 1))
                self.missing += len(skipped) - sum(ahead in skipped for ahead in self._ahead)
                self.acked = seq
        self._ahead = {ahead: None for ahead in self._ahead if ahead > self.acked}

    def copy(self) -> "Ledger":
        """Return one that can be changed apart."""
        other = Ledger(self.acked, tuple(self._boots), self.missing)
        other._ahead = self._ahead.copy()
        return other

    def dump(self) -> bytes:
        """Return all of it, to be kept."""
        return json.dumps([self.acked, [*self._boots], self.missing, [*self._ahead]]).encode()

    @classmethod
    def load(cls, data: bytes) -> "Ledger":
        """Return what was dumped."""
        acked, boots, missing, ahead = json.loads(data)
        ledger = cls(acked, tuple(boots), missing)
        ledger._ahead = dict.fromkeys(ahead)
        return ledger
