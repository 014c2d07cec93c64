"""How far a device's telemetry has come in: when it may forget what it queued."""

from collections.abc import Iterable

GAP_S = 30.0
"""How long a missing number is waited for. The device sends in order, but a broker may deliver
late, and a full outbox drops its oldest items for good. Batches say themselves what is missing."""

_BOOTS = 16


class Ledger:
    """The acknowledgement of one device's outbox.

    A device numbers its items on and on, and forgets everything up to what is acknowledged. So
    `acked` only passes a number that came in, or one that stayed missing for GAP_S while a later
    one was there. Repeats are told apart by (boot, seq), which the store keeps unique; here they
    do no harm.

    A device whose disk was wiped begins at 1 again: an old number from a boot that was never
    heard of starts the ledger anew. The same happens, harmlessly, when the only item of a boot
    comes after its gap was given up: an acknowledgement that is too low is only sent again.
    """

    def __init__(self, acked: int = 0, boots: tuple[str, ...] = ()) -> None:
        self.acked = acked
        self._boots = dict.fromkeys(boots[-_BOOTS:])
        self._waiting: dict[int, float] = {}

    def restarts(self, boot: str, seq: int) -> bool:
        """Return whether this item shows that the device begins to count anew."""
        return seq <= self.acked and boot not in self._boots

    def note(self, boot: str, seq: int, now: float) -> None:
        """Take in a committed item."""
        if self.restarts(boot, seq):
            self.acked = 0
            self._waiting.clear()
        self._know(boot)
        if seq > self.acked:
            self._waiting.setdefault(seq, now)
        self._advance()

    def note_batch(self, items: Iterable[tuple[str, int]], *, complete: bool) -> None:
        """Take in a committed batch: (boot, seq) of its items, ascending.

        Its device itself says whether anything is missing, so no number is waited for: one that
        is not `complete` overtook others, and is not acknowledged before they came.
        """
        last = 0
        for boot, seq in items:
            if self.restarts(boot, seq):
                self.acked = 0
                self._waiting.clear()
            self._know(boot)
            last = seq
        if complete and last > self.acked:
            self.acked = last
            self._waiting = {seq: at for seq, at in self._waiting.items() if seq > last}
            self._advance()

    def settle(self, now: float) -> None:
        """Give up gaps that are older than GAP_S."""
        while self._waiting and now - min(self._waiting.values()) >= GAP_S:
            self.acked = min(self._waiting) - 1
            self._advance()

    def gap_ends(self) -> float | None:
        """Return when `settle` will have something to do, or None without a gap."""
        return min(self._waiting.values()) + GAP_S if self._waiting else None

    def _know(self, boot: str) -> None:
        self._boots[boot] = None
        while len(self._boots) > _BOOTS:
            del self._boots[next(iter(self._boots))]

    def _advance(self) -> None:
        while self.acked + 1 in self._waiting:
            self.acked += 1
            del self._waiting[self.acked]
