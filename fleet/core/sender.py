"""Which chunks to publish next: one publish serves every device that wants the chunk.

A chunk that many ask for is queued once. It is not published twice within ECHO_S: a request that
came after its publish waits that long, since a device that asked too early to be subscribed still
has to get it, while most of these requests cross the chunk on its way. A device that asks again
for the same chunk within AGAIN_S is not heard; it will ask again, with its own backoff. What is
sent for one device is limited to twice the transfer in any minute: lost frames and restarts are
made good, an endless loop is not fed.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping

from wire.codec import DecodeError
from wire.transfer import MAX_WINDOW_CHUNKS, FetchRequest, FramePart, Offer

ECHO_S = 0.25
AGAIN_S = 0.5
BURST = MAX_WINDOW_CHUNKS
"""How many chunks `due` returns at most."""

MAX_QUEUED = 65_536
"""Chunks that wait to be published; more are refused, and asked for again."""

MAX_REMEMBERED = 262_144
"""(device, chunk) pairs that are remembered for AGAIN_S."""

_SLOT_S = 10.0
_SLOTS = 6

Chunk = tuple[str, FramePart, int]
"""Index digest, part, number."""


class Sender:
    """The queue of chunks. No I/O: the controller's loop publishes what `due` returns."""

    def __init__(self) -> None:
        self._allowed: dict[str, Mapping[str, Offer]] = {}
        self._queues: OrderedDict[str, deque[Chunk]] = OrderedDict()
        self._waiting: set[Chunk] = set()
        self._later: list[tuple[float, Chunk]] = []
        self._published: OrderedDict[Chunk, float] = OrderedDict()
        self._asked: OrderedDict[tuple[str, Chunk], float] = OrderedDict()
        self._budgets: dict[tuple[str, str], _Budget] = {}
        self.refused = 0
        """Chunks asked for that will not be sent, since start."""

    def allow(self, device: str, offers: Iterable[Offer]) -> None:
        """Let `device` ask for these transfers, which its current Desired offers, and no other."""
        before = self._allowed.get(device, {})
        self._allowed[device] = {offer.index: offer for offer in offers}
        for index in before.keys() - self._allowed[device].keys():
            self._budgets.pop((device, index), None)

    def request(self, device: str, request: FetchRequest, now: float) -> str | None:
        """Queue what a device asks for; return why some of it is refused, or None."""
        offer = self._allowed.get(device, {}).get(request.index)
        if offer is None:
            self.refused += 1
            return f"{request.index[:19]}... is no index of what {device} should run"
        try:
            numbers = request.numbers()
        except DecodeError as error:
            self.refused += 1
            return str(error)
        end = offer.part_chunks(request.part)
        if len(numbers) > MAX_WINDOW_CHUNKS or any(number >= end for number in numbers):
            self.refused += len(numbers)
            return f"expected at most {MAX_WINDOW_CHUNKS} of {end} chunks, got up to {numbers[-1]}"
        self._forget(now)
        for number in numbers:
            reason = self._want(device, offer, (request.index, request.part, number), now)
            if reason is not None:
                self.refused += 1
                return reason
        return None

    def due(self, now: float) -> list[Chunk]:
        """Return up to BURST chunks to publish now, in turns over the transfers."""
        while self._later and self._later[0][0] <= now:
            self._enqueue(heapq.heappop(self._later)[1])
        chunks: list[Chunk] = []
        while self._queues and len(chunks) < BURST:
            index, queue = self._queues.popitem(last=False)
            chunk = queue.popleft()
            if queue:
                self._queues[index] = queue
            self._waiting.discard(chunk)
            self._published.pop(chunk, None)
            self._published[chunk] = now
            chunks.append(chunk)
        return chunks

    def next_due(self) -> float | None:
        """Return when `due` has something: 0 for at once, None for not before a request."""
        if self._queues:
            return 0.0
        return self._later[0][0] if self._later else None

    def _want(self, device: str, offer: Offer, chunk: Chunk, now: float) -> str | None:
        if now - self._asked.get((device, chunk), -AGAIN_S) < AGAIN_S:
            return None
        if chunk not in self._waiting and len(self._waiting) >= MAX_QUEUED:
            return f"{MAX_QUEUED} chunks wait already"
        budget = self._budgets.setdefault((device, offer.index), _Budget(offer))
        if not budget.spend(offer.chunk_length(chunk[1], chunk[2]), now):
            return f"{device} had {offer.index[:19]}... twice within a minute"
        self._asked.pop((device, chunk), None)
        self._asked[device, chunk] = now
        if chunk not in self._waiting:
            self._waiting.add(chunk)
            published = self._published.get(chunk)
            if published is None:
                self._enqueue(chunk)
            else:
                heapq.heappush(self._later, (published + ECHO_S, chunk))
        return None

    def _enqueue(self, chunk: Chunk) -> None:
        self._queues.setdefault(chunk[0], deque()).append(chunk)

    def _forget(self, now: float) -> None:
        """Drop what is too old to matter; both maps are in the order of time."""
        while self._published and now - next(iter(self._published.values())) >= ECHO_S:
            self._published.popitem(last=False)
        while self._asked and (
            now - next(iter(self._asked.values())) >= AGAIN_S or len(self._asked) > MAX_REMEMBERED
        ):
            self._asked.popitem(last=False)


class _Budget:
    """Bytes sent for one device and transfer in the last minute, in slots of ten seconds."""

    __slots__ = ("_limit", "_slots")

    def __init__(self, offer: Offer) -> None:
        # A tiny transfer may still cost a window: its device can be restarted often.
        window = MAX_WINDOW_CHUNKS * offer.chunk_bytes
        self._limit = max(2 * (offer.transfer_bytes + offer.index_bytes), window)
        self._slots: dict[int, int] = {}

    def spend(self, count: int, now: float) -> bool:
        """Take `count` bytes if the last minute leaves them."""
        slot = int(now // _SLOT_S)
        for old in [each for each in self._slots if not slot - _SLOTS <= each <= slot]:
            del self._slots[old]
        if sum(self._slots.values()) + count > self._limit:
            return False
        self._slots[slot] = self._slots.get(slot, 0) + count
        return True
