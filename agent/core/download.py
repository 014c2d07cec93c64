"""The chunk receiver of one transfer: what is missing, what to ask for, what to believe.

It does no I/O and is mutable, since it handles every frame. Frames come on a topic that all
devices of a wave share, so frames nobody here asked for are welcome, and repeats are normal.

Of a wave, one device *leads*: it asks, and the others follow, which is to listen. A device begins
as a leader; it follows as soon as a frame shows that others ask too: one that it did not ask for,
or one marked as crowded. A follower to which nothing new comes leads again, after a while that is
another one on each device. So a leader that is slow, or has all it wants, is soon replaced, and
whoever came late asks for what it missed when the rest is through.
"""

import math
from dataclasses import dataclass, field
from itertools import islice, takewhile

from agent.core.jitter import draw
from wire.transfer import (
    HASH_BYTES,
    MAX_WINDOW_CHUNKS,
    ChunkFrame,
    FetchRequest,
    FramePart,
    Offer,
    chunk_hash,
)

PATIENCE_S = (0.1, 0.6)
"""How long a follower waits after the last new frame before it takes the lead."""
MOST_PATIENCE = 8.0
"""How often that, when it takes the lead again and again and others lead already."""

LEAD_WINDOWS = 4
"""How many windows one device asks for while others follow, before it lets another one lead."""
STEP_BACK_S = 2.0
"""How long it waits for that. Who still hears what the broker has in store does not lead, so the
wave goes on when the first of the others has caught up, and at their pace."""

GAPS = 3.0
"""A follower also waits for so many of the gaps that new frames come with: on a slow line they
are still on their way long after the others have them, and must not be asked for."""
FADING = 0.9
LONGEST_GAP_S = 5.0
HOLD_EVERY_S = 0.5
FAITH_S = 5.0
"""How long frames that cannot be verified yet are taken for those of a leader: they may be
anybody's, and must not keep a device from asking."""

OVERDRAWN_S = 2.0
REPORTS_BEHIND = 2
"""After so many acknowledged reports no frame is left of what was held back: the first may have
been sent before the topic was left."""
CATCH_UP_S = 10.0
"""How long a device that catches up waits for more before it goes on all the same."""
FIRST_TIMEOUT_S = 1.0
LAST_TIMEOUT_S = 60.0
SOURCE_SILENCE_S = 10.0
"""Without a chunk for this long, a source is as good as gone."""
POISON_LIMIT = 16
"""Wrong frames in a row, after which nothing is asked for during a while, longer each time."""
ROUNDING = 1e-6
"""So that a wake-up planned for a whole chunk finds a whole chunk."""


@dataclass(frozen=True, slots=True)
class IndexVerified:
    """The whole index matched its digest."""

    index: bytes


@dataclass(frozen=True, slots=True)
class ChunkVerified:
    """A data chunk matched the index and was not there before."""

    offset: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class FrameRejected:
    """A frame that cannot be right: poisoned, or of another shape than the offer says."""

    text: str


DownloadEvent = IndexVerified | ChunkVerified | FrameRejected


@dataclass(slots=True)
class Download:
    """One transfer under way. `window` chunks are asked for ahead, again at half of that.

    `rate_bytes_s` caps what is asked for, in bytes a second with a second's worth of burst, but
    never less than a chunk at a time; 0: no cap.
    """

    offer: Offer
    window: int
    seed: str
    rate_bytes_s: int = 0
    own: bool = False
    """Frames come on the device's own topic; it hears nobody else's, and follows nobody."""
    index: bytes = b""
    opened: bool = False
    resting: bool = False
    """Its topic was left, since nothing is to be fetched now."""
    catching_up: int = 0
    """How many reports are to be acknowledged before its topic, left because it was too fast, is
    heard again; 0: it is."""
    source: str = ""
    """URL of the source that is asked for ranges; empty: the broker is asked for windows."""
    last_progress: float = 0.0
    """Monotonic seconds of the last verified frame."""
    bad: int = 0
    received_bytes: int = 0
    heard_bytes: int = 0
    """Payload of all frames, repeats and wrong ones included."""
    _index_frames: dict[int, bytes] = field(default_factory=dict)
    _present: bytearray = field(default_factory=bytearray)
    """A byte a chunk: 128 KiB for 8 GiB, where a set would take 8 MB."""
    _count: int = 0
    _asked: dict[int, float] = field(default_factory=dict)
    _cursor: int = 0
    _timeout: float = FIRST_TIMEOUT_S
    _bad_in_a_row: int = 0
    _quiet_until: float = 0.0
    _follows_until: float | None = None
    """When a follower loses patience; None: it leads."""
    _patience: float = 0.0
    _haste: float = 1.0
    """By how much patience grew, since leading proved needless."""
    _led: int = 0
    """Chunks that came at its own wish while others followed, since it took the lead."""
    _lead_windows: int = LEAD_WINDOWS
    """How many windows that may be: more each time when nobody else took the lead."""
    _hold_at: float = 0.0
    _gap: float = 0.0
    """The longest time between two new frames, seconds, fading with each frame."""
    _allowance: float = 0.0
    """Bytes that may be asked for."""
    _allowed_at: float = 0.0
    _draws: int = 0

    def open(self, index: bytes, present: frozenset[int], now: float) -> None:
        """Start from what lies on disk: a verified index or b"", and verified chunks."""
        self.index = index
        self._present = bytearray(self.offer.chunks)
        for number in present:
            self._present[number] = 1
        self._count = len(present)
        self.opened = True
        self.last_progress = now
        self._allowance = self._burst
        self._allowed_at = now

    @property
    def part(self) -> FramePart:
        """What is being fetched now: the index first, then the data."""
        return "data" if len(self.index) == self.offer.index_bytes else "index"

    @property
    def complete(self) -> bool:
        """Whether every chunk is on disk."""
        return self.opened and self.part == "data" and self._count == self.offer.chunks

    @property
    def done_bytes(self) -> int:
        """How much of the transfer is on disk, to the nearest chunk."""
        return min(self._count * self.offer.chunk_bytes, self.offer.transfer_bytes)

    def receive(self, frame: ChunkFrame, now: float) -> list[DownloadEvent]:
        """Take a frame; return what it brought. Repeats and stray parts bring nothing."""
        self.heard_bytes += len(frame.payload)
        if not self.opened:
            return []
        if frame.part != self.part:
            if frame.part == "data":
                self._follow(now)  # others are on their way
            return []
        if frame.number >= self.offer.part_chunks(frame.part):
            return [self._reject(frame, "number beyond the end", now)]
        if len(frame.payload) != self.offer.chunk_length(frame.part, frame.number):
            return [self._reject(frame, f"unexpected length {len(frame.payload)}", now)]
        return self._index_frame(frame, now) if frame.part == "index" else self._data(frame, now)

    def _index_frame(self, frame: ChunkFrame, now: float) -> list[DownloadEvent]:
        self._index_frames[frame.number] = frame.payload
        self._asked.pop(frame.number, None)
        self.received_bytes += len(frame.payload)
        if len(self._index_frames) < self.offer.part_chunks("index"):
            return []
        index = b"".join(self._index_frames[n] for n in sorted(self._index_frames))
        self._index_frames.clear()
        if "sha256:" + chunk_hash(index).hex() != self.offer.index:
            # Which of its frames lied cannot be known, so all of them are asked for again.
            self._back_off(now)
            return [self._reject(frame, "the index does not match its digest", now)]
        self.index = index
        self._asked.clear()
        self._progress(now)
        if frame.crowded:
            self._follow(now)
        return [IndexVerified(index)]

    def _data(self, frame: ChunkFrame, now: float) -> list[DownloadEvent]:
        if self._present[frame.number]:
            return []
        place = frame.number * HASH_BYTES
        if chunk_hash(frame.payload) != self.index[place : place + HASH_BYTES]:
            return [self._reject(frame, "payload does not match the index", now)]
        self._present[frame.number] = 1
        self._count += 1
        unasked = self._asked.pop(frame.number, None) is None
        if unasked and self.rate_bytes_s:
            self._allowance -= len(frame.payload)
        self.received_bytes += len(frame.payload)
        self._progress(now)
        if frame.crowded or unasked:
            self._lead_windows = LEAD_WINDOWS
            self._follow(now)
        elif self._follows_until is not None:
            self._follow(now)
        else:
            self._haste = 1.0
            self._lead(frame, now)
        return [ChunkVerified(frame.number * self.offer.chunk_bytes, frame.payload)]

    def _follow(self, now: float) -> None:
        """Leave the asking to others for as long as something new comes of it."""
        if self.own or now - self.last_progress > FAITH_S:
            return
        if self._follows_until is None:
            self._draws += 1
            least, most = PATIENCE_S
            self._patience = self._haste * (least + (most - least) * draw(self.seed, self._draws))
            self._haste = min(2 * self._haste, MOST_PATIENCE)
        self._follows_until = now + self._patience + GAPS * self._gap

    def _lead(self, frame: ChunkFrame, now: float) -> None:
        """Let another device lead after a while, so that the fastest does not set the pace."""
        self._led += frame.followed and not self.own
        if self._led >= self._lead_windows * self.window:
            self._led = 0
            self._lead_windows *= 2
            self._patience = STEP_BACK_S
            self._follows_until = now + STEP_BACK_S

    def _progress(self, now: float) -> None:
        self._gap = min(max(now - self.last_progress, FADING * self._gap), LONGEST_GAP_S)
        self.last_progress = now
        self._timeout = FIRST_TIMEOUT_S
        self._bad_in_a_row = 0
        self._quiet_until = now

    def _reject(self, frame: ChunkFrame, why: str, now: float) -> FrameRejected:
        return self.reject(f"{self.offer.transfer[:19]} {frame.part} {frame.number}: {why}", now)

    def reject(self, text: str, now: float) -> FrameRejected:
        """Count a frame that cannot be right; after many in a row, ask for nothing for a while."""
        self.bad += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= POISON_LIMIT:
            self._back_off(now)
        return FrameRejected(text)

    def _back_off(self, now: float) -> None:
        self._bad_in_a_row = 0
        if now >= self._quiet_until:  # what nobody asked for must not make it longer
            self._asked.clear()
            self._lengthen_timeout()
            self._quiet_until = now + self._timeout

    def _lengthen_timeout(self) -> None:
        self._draws += 1
        wait = min(self._timeout * 2, LAST_TIMEOUT_S)
        self._timeout = wait * (0.75 + 0.5 * draw(self.seed, self._draws))

    def requests_due(self, now: float) -> list[FetchRequest]:
        """Return what to ask for now: the next window, and what was asked for in vain."""
        if not self.opened or self.complete or self.catching_up or now < self._quiet_until:
            return []
        overdue = self._overdue(now)
        if overdue and self.last_progress <= max(self._asked[n] for n in overdue):
            # Silence since we asked: the next wait is longer, and not the same on every device.
            self._lengthen_timeout()
        for number in overdue:
            del self._asked[number]
        if self._follows_until is not None:
            if now < self._follows_until:
                return []
            self._follows_until = None
        if len(self._asked) > self.window // 2 and not overdue:
            return []
        room = self.window - len(self._asked)
        return self._ask(self._next(min(room, self._affordable(now))), now)

    @property
    def _burst(self) -> float:
        return float(max(self.rate_bytes_s, self.offer.chunk_bytes))

    def _affordable(self, now: float) -> int:
        """Return how many chunks the bandwidth cap allows to be asked for now."""
        if self.rate_bytes_s == 0:
            return self.window
        earned = (now - self._allowed_at) * self.rate_bytes_s
        self._allowance = min(self._allowance + earned, self._burst)
        self._allowed_at = now
        return max(int(self._allowance / self.offer.chunk_bytes + ROUNDING), 0)

    def _next(self, room: int) -> list[int]:
        if self.part == "index":
            missing = (
                n for n in range(self.offer.part_chunks("index")) if n not in self._index_frames
            )
        else:
            self._cursor = max(self._present.find(0, self._cursor), 0)
            missing = (n for n in range(self._cursor, self.offer.chunks) if not self._present[n])
        return list(islice((n for n in missing if n not in self._asked), room))

    def _ask(self, numbers: list[int], now: float) -> list[FetchRequest]:
        requests: list[FetchRequest] = []
        numbers = sorted(numbers)
        while numbers:
            span = [n for n in numbers if n - numbers[0] < MAX_WINDOW_CHUNKS]
            requests.append(FetchRequest.of(self.offer.index, self.part, span, self.own))
            numbers = numbers[len(span) :]
        for request in requests:
            for number in request.numbers():
                self._asked[number] = now
                if self.rate_bytes_s:
                    self._allowance -= self.offer.chunk_bytes
        return requests

    @property
    def overdrawn(self) -> bool:
        """Whether frames that others asked for keep coming faster than the bandwidth cap."""
        return self.rate_bytes_s > 0 and self._allowance < -OVERDRAWN_S * self._burst

    @property
    def window_bytes(self) -> int:
        """What is under way at most at this device's own wish."""
        return self.window * self.offer.chunk_bytes

    def would_lead(self, now: float) -> bool:
        """Whether a follower's patience is over."""
        return self._follows_until is not None and now >= self._follows_until

    def follow_on(self, now: float) -> None:
        """Wait a little longer."""
        self._follows_until = now + PATIENCE_S[0]

    def hold(self, now: float) -> bool:
        """Return whether to ask now that the wave be held; not more than twice a second."""
        due = now >= self._hold_at
        if due:
            self._hold_at = now + HOLD_EVERY_S
        return due

    def catch_up(self) -> None:
        """Ask for nothing until what the broker held back for this device has come."""
        self.catching_up = REPORTS_BEHIND

    @property
    def caught_up_by(self) -> float:
        """Until when frames held back may still come, monotonic seconds."""
        return self.last_progress + CATCH_UP_S

    def caught_up(self, now: float) -> None:
        """Follow the others again, if there are any left."""
        self.catching_up = 0
        self.forget_requests()
        self.last_progress = now
        self._follow(now)

    def leave(self) -> None:
        """Leave the shared topic: from now on the frames come on this device's own."""
        self.own = True
        self.catching_up = 0
        self._allowance = max(self._allowance, 0.0)
        self.forget_requests()

    def forget_requests(self) -> None:
        """Ask afresh, since the broker lost what was under way."""
        if not self.source:
            self._asked.clear()
            self._timeout = FIRST_TIMEOUT_S

    def go_to(self, source: str) -> None:
        """Ask a source from now on, or the broker (""), for all that has not come yet."""
        self.source = source
        self._asked.clear()
        self._follows_until = None
        self._timeout = FIRST_TIMEOUT_S

    def range_due(self, now: float) -> tuple[int, int] | None:
        """Return the next range to ask the source for, first chunk and count, if it is time."""
        if self._asked or self.complete:
            return None
        numbers = self._next(min(self.window, self._affordable(now)))
        run = [n for place, n in enumerate(numbers) if n - numbers[0] == place]
        if not run:
            return None
        for number in run:
            self._asked[number] = now
        if self.rate_bytes_s:
            self._allowance -= len(run) * self.offer.chunk_bytes
        return run[0], len(run)

    def silent_at(self) -> float:
        """Return when the source will have been silent for too long; inf: nothing is awaited."""
        asked = max(self._asked.values(), default=math.inf)
        return max(asked, self.last_progress) + SOURCE_SILENCE_S

    def expected_until(self) -> float:
        """Return until when answers to what was asked for may still come, monotonic seconds."""
        if self.source:
            return self.silent_at() if self._asked else 0.0
        return max((asked + self._timeout for asked in self._asked.values()), default=0.0)

    def resume(self, now: float) -> None:
        """Go on after a rest: nothing is on its way, and no deadline ran."""
        self.resting = False
        self.catching_up = 0
        self.last_progress = now
        self._asked.clear()
        self._timeout = FIRST_TIMEOUT_S

    def next_due(self) -> float | None:
        """Return when `requests_due` next has something to say, in monotonic seconds."""
        if not self.opened or self.complete:
            return None
        if self.catching_up:
            return self.caught_up_by
        return max(self._due(), self._quiet_until, self._follows_until or 0.0)

    def _late(self, asked: float) -> float:
        """Return when a request counts as lost."""
        # On a slow line it waits behind what others asked for.
        return max(asked, self.last_progress) + self._timeout

    def _overdue(self, now: float) -> list[int]:
        # They lie in the order in which they were asked for.
        waiting = self._asked.items()
        return [number for number, _ in takewhile(lambda each: now >= self._late(each[1]), waiting)]

    def _due(self) -> float:
        if self.source and self._asked:
            return self.silent_at()
        late = self._late(next(iter(self._asked.values()))) if self._asked else 0.0
        if not self.rate_bytes_s or self._allowance + ROUNDING >= self.offer.chunk_bytes:
            return late
        lacking = self.offer.chunk_bytes - self._allowance
        earned = self._allowed_at + lacking / self.rate_bytes_s
        if len(self._asked) <= self.window // 2:
            return earned
        return max(late, earned)
