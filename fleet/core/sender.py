"""Which chunks to publish next: one publish serves every device that wants the chunk.

A chunk that many ask for is queued once. Who asks within ECHO_S after its publish is not heard:
most of these requests cross the chunk on its way, and a device that asked too early to be
subscribed asks again, a little later than that. What is sent for one device is limited to twice
the transfer in any minute: lost frames and restarts are made good, an endless loop is not fed.

The first frames wait until the devices that may start together have all asked, or nobody new came
for a while, so that they hear the whole of one stream. While more than a few of a wave say that
they cannot follow, nothing is published for it. A device that left the shared topic has its
chunks sent to it alone, in turns with the stream of the others.
"""

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from wire.codec import DecodeError
from wire.transfer import MAX_WINDOW_CHUNKS, FetchRequest, FramePart, Offer

ECHO_S = 0.9
BURST = MAX_WINDOW_CHUNKS
"""How many chunks `due` returns at most."""

MAX_QUEUED = 65_536
"""Chunks that wait to be published; more are refused, and asked for again."""

GATHER_S = 0.3
MAX_GATHER_S = 2.0
"""A transfer that several may want waits until all have asked, or nobody new for GATHER_S."""

LOOK_S = 0.05
"""How often it is looked whether all have asked, and whether a wave is still held."""

HOLD_S = 1.0
"""How long a device that cannot follow holds its wave, if enough others cannot either."""
FEW = 0.1
"""Up to this share of a wave may be slower than the rest: nobody waits for those."""

APART_S = 10.0
"""Who comes after this much silence belongs to another wave."""

_SLOT_S = 10.0
_SLOTS = 6


class Chunk(NamedTuple):
    """What is published once; with `device`, on that device's own topic."""

    artifact: str
    """Digest of its index."""
    part: FramePart
    number: int
    device: str = ""


class Due(NamedTuple):
    """A chunk to publish; whether more than one device had asked for it, or fetches alike."""

    chunk: Chunk
    crowded: bool
    followed: bool = False


@dataclass(slots=True)
class _Wave:
    """The devices that fetch one transfer at the same time."""

    since: float
    heard: float
    """When one of them last asked for something."""
    grew: float
    """When the last one joined."""
    gathered: bool = False
    """Something was published: whoever joins now holds up nobody."""
    devices: set[str] = field(default_factory=set)
    holds: dict[str, float] = field(default_factory=dict)
    """Device -> when it last could not follow, in the order of time."""

    def hold(self, device: str, now: float) -> None:
        """Note that a device cannot follow."""
        self.holds.pop(device, None)
        self.holds[device] = now

    def held(self, now: float) -> bool:
        """Whether too many of the devices cannot follow."""
        while self.holds and now - next(iter(self.holds.values())) >= HOLD_S:
            del self.holds[next(iter(self.holds))]
        return len(self.holds) > max(1.0, FEW * len(self.devices))


class Sender:
    """The queue of chunks. No I/O: the controller's loop publishes what `due` returns."""

    def __init__(self) -> None:
        self._allowed: dict[str, Mapping[str, Offer]] = {}
        self._queues: OrderedDict[str, deque[Chunk]] = OrderedDict()
        self._waiting: dict[Chunk, str] = {}
        """Chunk -> the one device that asked for it; "": several did."""
        self._expected: Counter[str] = Counter()
        """Index -> how many devices may ask for it."""
        self._waves: dict[str, _Wave] = {}
        self._later: list[tuple[float, Chunk]] = []
        self._published: OrderedDict[Chunk, float] = OrderedDict()
        self._budgets: dict[tuple[str, str], _Budget] = {}
        self.refused = 0
        """Chunks asked for that will not be sent, since start."""

    def allow(self, device: str, offers: Iterable[Offer]) -> None:
        """Let `device` ask for these transfers, which its current Desired offers, and no other."""
        before = self._allowed.get(device, {})
        after = self._allowed[device] = {offer.index: offer for offer in offers}
        self._expected.update(after.keys() - before.keys())
        for index in before.keys() - after.keys():
            self._budgets.pop((device, index), None)
            self._expected[index] -= 1
            if not self._expected[index]:
                del self._expected[index]
                self._waves.pop(index, None)

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
        if request.hold and request.index in self._waves:
            self._waves[request.index].hold(device, now)
            return None
        if not request.own:
            self._join(device, offer, now)
        for number in numbers:
            chunk = Chunk(request.index, request.part, number, device if request.own else "")
            reason = self._want(device, offer, chunk, now)
            if reason is not None:
                self.refused += 1
                return reason
        return None

    def due(self, now: float) -> list[Due]:
        """Return up to BURST chunks to publish now, in turns over the transfers."""
        while self._later and self._later[0][0] <= now:
            chunk = heapq.heappop(self._later)[1]
            self._enqueue(chunk, self._not_before(chunk, now), now)
        chunks: list[Due] = []
        while self._queues and len(chunks) < BURST:
            index, queue = self._queues.popitem(last=False)
            chunk = queue.popleft()
            if queue:
                self._queues[index] = queue
            not_before = self._not_before(chunk, now)
            if not_before > now:
                self._enqueue(chunk, not_before, now)
                continue
            crowded = not self._waiting.pop(chunk)
            self._published.pop(chunk, None)
            self._published[chunk] = now
            wave = None if chunk.device else self._waves.get(chunk.artifact)
            if wave is not None:
                wave.gathered = True
            chunks.append(Due(chunk, crowded, wave is not None and len(wave.devices) > 1))
        return chunks

    def next_due(self) -> float | None:
        """Return when `due` has something: 0 for at once, None for not before a request."""
        if self._queues:
            return 0.0
        return self._later[0][0] if self._later else None

    def _want(self, device: str, offer: Offer, chunk: Chunk, now: float) -> str | None:
        if chunk in self._waiting:
            if self._waiting[chunk] != device:
                self._waiting[chunk] = ""
            return None
        if now - self._published.get(chunk, -ECHO_S) < ECHO_S:
            return None
        if len(self._waiting) >= MAX_QUEUED:
            return f"{MAX_QUEUED} chunks wait already"
        budget = self._budgets.setdefault((device, offer.index), _Budget(offer))
        if not budget.spend(offer.chunk_length(chunk.part, chunk.number), now):
            return f"{device} had {offer.transfer[:19]}... twice within a minute"
        self._waiting[chunk] = device
        self._enqueue(chunk, self._not_before(chunk, now), now)
        return None

    def _enqueue(self, chunk: Chunk, at: float, now: float) -> None:
        if at > now:
            heapq.heappush(self._later, (at, chunk))
        else:
            self._queues.setdefault(chunk.artifact + chunk.device, deque()).append(chunk)

    def _join(self, device: str, offer: Offer, now: float) -> None:
        """Count a device among those that fetch this transfer just now."""
        wave = self._waves.get(offer.index)
        if wave is None or now - wave.heard > APART_S:
            wave = self._waves[offer.index] = _Wave(now, now, now)
        wave.heard = now
        if device not in wave.devices:
            wave.devices.add(device)
            wave.grew = now

    def _not_before(self, chunk: Chunk, now: float) -> float:
        """Return when to look again whether its wave has gathered and can follow; 0: now."""
        wave = self._waves.get(chunk.artifact)
        if wave is None or chunk.device:
            return 0.0
        if wave.held(now):
            return now + LOOK_S
        if wave.gathered:
            return 0.0
        if len(wave.devices) >= self._expected[chunk.artifact]:
            return 0.0
        until = min(wave.since + MAX_GATHER_S, wave.grew + GATHER_S)
        return min(until, now + LOOK_S)

    def _forget(self, now: float) -> None:
        """Drop what is too old to matter; the map is in the order of time."""
        while self._published and now - next(iter(self._published.values())) >= ECHO_S:
            self._published.popitem(last=False)


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
