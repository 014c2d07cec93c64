"""What waits, what may be sent, what goes when room runs out."""

import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from agent.shell.outbox.segments import (
    SPARE_BYTES,
    Entry,
    KindOfItem,
    Line,
    Segment,
    Segments,
    batch_of,
    kind_of,
    lines_of,
)
from wire.codec import DecodeError
from wire.packing import PackError, pack
from wire.telemetry import DeviceEvent, Item, ScoreWindow

log = logging.getLogger("agent.shell.outbox")

SEGMENTS = 16
MAX_SEGMENT_BYTES = 64 * 1024
MAX_BATCH_BYTES = 24 * 1024
"""Of bodies as they are kept: as one batch they take less."""
MAX_BATCH_ITEMS = 100
MAX_AHEAD = 16
HEADROOM_BYTES = SPARE_BYTES + 2048
"""For what is there beside the items."""
DAY_S = 86_400.0

FULL = (errno.ENOSPC, errno.EDQUOT)

LEAST_FIRST: tuple[KindOfItem, ...] = ("health", "window", "event")
_PLURALS = {"window": "windows", "health": "health", "event": "events"}


class Outgoing(NamedTuple):
    """A batch to be sent: its last number, and its bytes."""

    last: int
    body: bytes


class Outbox:
    """A durable queue with bounds; not for several threads at a time.

    For want of room items that were never sent are merged; after that the least important go.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        max_age_s: float = 30 * DAY_S,
        *,
        started: int = 0,
        mono: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open what an earlier run left. `started` is when this one began, in unix seconds.

        Age is time with a running agent, which no clock that is set can change.
        """
        self._max_bytes = max_bytes - HEADROOM_BYTES
        self._max_age_s = max_age_s
        self._mono = mono
        self._dropped = 0
        self._merged = 0
        self._begun = False
        self._troubled = False
        self._log = Segments(directory, min(MAX_SEGMENT_BYTES, max_bytes // SEGMENTS))
        self._last = self._log.last
        oldest = next((e.seq for s in self._log.all for e in s.entries), self._last + 1)
        self._acked = max(self._log.memory.gone, oldest - 1)
        self._t0 = max((segment.t for segment in self._log.all), default=0) - mono()
        self._begin_run(started)
        self._make_room(0)

    def _begin_run(self, started: int) -> None:
        memory = self._log.memory
        owed = memory.owed
        if memory.starts and not memory.clean:
            owed = owed or self._log.torn_since or memory.end or memory.started
        self._log.remember(
            starts=memory.starts + 1, started=started, end=0, owed=owed, clean=False
        )  # fmt: skip

    @property
    def starts(self) -> int:
        """How often a run began on this directory, this one included."""
        return self._log.memory.starts

    @property
    def owed_since(self) -> int | None:
        """Since when counts are missing, as an earlier run ended uncleanly and nobody told."""
        return self._log.memory.owed or None

    @property
    def dropped(self) -> int:
        """Items lost since start for want of room."""
        return self._dropped

    @property
    def merged(self) -> int:
        """Items that became part of others since start."""
        return self._merged

    @property
    def untold(self) -> dict[str, int]:
        """What was dropped, ever, and no event told of; empty: nothing."""
        lost, told = self._log.memory.lost, self._log.memory.told
        left = {name: count - told.get(name, 0) for name, count in lost.items()}
        return {name: count for name, count in left.items() if count > 0}

    @property
    def roomy(self) -> bool:
        """Whether a quarter is free."""
        return self.flash_bytes * 4 <= self._max_bytes * 3

    @property
    def waiting(self) -> int:
        """Items that are not acknowledged."""
        return sum(1 for _ in self._waiting())

    @property
    def flash_bytes(self) -> int:
        """Bytes on disk."""
        return self._log.size

    @property
    def bytes_written(self) -> int:
        """Bytes given to the disk since start, without the file system's own."""
        return self._log.written

    @property
    def acked(self) -> int:
        """Everything up to here is known to be acknowledged, or gone."""
        return self._acked

    @property
    def published(self) -> int:
        """Everything up to here was sent in its turn."""
        return self._log.memory.published

    def last_seq(self) -> int:
        """Return the highest sequence number ever given out, as far as anybody knows."""
        return self._last

    # ---- in

    def enqueue(self, item: Item) -> None:
        """Keep an item until `forget`. On a full disk the oldest go for it, or it is lost."""
        self._last = max(self._last, item.seq)
        try:
            line = Line.of(item, int(self._t0 + self._mono()))
        except PackError as error:
            log.error("outbox: an item is too long to be sent, and is lost: %s", error)
            self._lose([_loss(item, seen=False)])
            return
        self._make_room(len(line.body) + 200)
        segments = len(self._log.all)
        try:
            self._append(line, self._carried_by(item))
        except OSError as error:
            self._lose([_loss(item, seen=False)])
            if not self._troubled:
                log.error("outbox: reports are being lost: %s", error.strerror)
            self._troubled = True
        else:
            self._troubled = False
            self._look_after(segments)

    def _look_after(self, segments: int) -> None:
        """Do what is due once a run, and with every new segment."""
        try:
            if not self._begun:
                # Or a power cut would let the clean end of the run before stand for this one's.
                self._log.sync()
                self._begun = True
            if len(self._log.all) > segments:
                self._expire()
        except OSError as error:
            log.error("outbox: %s", error.strerror)

    def _carried_by(self, item: Item) -> dict[str, Any]:
        """Return what the memory is to say once this item is on the disk."""
        if isinstance(item, ScoreWindow):
            return {"end": item.end}
        if isinstance(item, DeviceEvent) and item.kind == "gap":
            return {"owed": 0}
        if isinstance(item, DeviceEvent) and item.kind == "dropped":
            told = self._log.memory.told
            added = {name: told.get(name, 0) + count for name, count in item.counts.items()}
            return {"told": {**told, **added}}
        return {}

    def _append(self, line: Line, carrying: Mapping[str, Any]) -> None:
        try:
            self._log.append(line, carrying=carrying)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._give_up_oldest()
            self._log.append(line, carrying=carrying)

    def _give_up_oldest(self) -> None:
        """Free what the oldest segment takes, for a disk that takes nothing any more.

        Raises:
            OSError: not even that can be noted.
        """
        if self._sweep():
            return
        if len(self._log.all) == 1:
            self._log.begin()
        if not self._sweep():
            self._let_go_of(self._log.all[0])
            self._sweep()

    def _let_go_of(self, segment: Segment) -> None:
        """Count the oldest segment as lost; it is swept away later."""
        lines = lines_of(segment, self._unacked(segment))
        self._acked = max(self._acked, segment.entries[-1].seq)
        self._lose([_loss_of(line, seen=self._seen(line.seq)) for line in lines])

    # ---- out

    def batch(self, max_bytes: int = MAX_BATCH_BYTES) -> Outgoing | None:
        """Return the oldest items as one batch, or None if there are none.

        They are on the disk when this returns, and so is that they were sent: a number that was
        seen by others and then lost in a power cut would be given to another item.

        Raises:
            OSError: the disk refuses to remember it.
        """
        outgoing = None
        while outgoing is None:
            lines = self._oldest(min(max_bytes, MAX_BATCH_BYTES))
            if not lines:
                return None
            outgoing = self._packed(lines, complete=True)
        memory = self._log.memory
        if outgoing.last > memory.published:
            ahead = tuple(seq for seq in memory.ahead if seq > outgoing.last)
            self._log.remember(published=outgoing.last, ahead=ahead, gone=self._acked)
            self._log.note()
        self._log.sync()
        return outgoing

    def newest_health(self) -> Outgoing | None:
        """Return the newest report, to be sent ahead of a backlog.

        None: there is no backlog, or it was sent.

        Raises:
            OSError: the disk refuses to remember that it is sent.
        """
        memory = self._log.memory
        waiting = list(self._waiting())
        size = sum(entry.size for _, entry in waiting)
        if size <= MAX_BATCH_BYTES and len(waiting) <= MAX_BATCH_ITEMS:
            return None
        segment, newest = next(
            (each for each in reversed(waiting) if each[1].kind == "health"), waiting[-1]
        )
        if newest.kind != "health" or self._seen(newest.seq) or len(memory.ahead) >= MAX_AHEAD:
            return None
        outgoing = self._packed(list(lines_of(segment, [newest])), complete=False)
        if outgoing is not None:
            self._log.remember(ahead=(*memory.ahead, newest.seq))
            self._log.note()
            self._log.sync()
        return outgoing

    def forget(self, seq: int) -> None:
        """Drop everything up to `seq`: the controller has it."""
        self._acked = max(self._acked, min(seq, self._log.memory.published))
        try:
            self._sweep()
        except OSError as error:
            log.error("outbox: %s", error.strerror)

    def close(self) -> None:
        """Bring everything to the disk, and that this run ended well."""
        try:
            self._log.remember(clean=True, gone=self._acked)
            self._log.note()
            self._log.sync()
        except OSError as error:
            log.error("outbox: %s", error.strerror)
        self._log.let_go()

    def _oldest(self, max_bytes: int) -> list[Line]:
        found: list[Line] = []
        room = max_bytes
        for segment in self._log.all:
            for line in lines_of(segment, self._unacked(segment)):
                room -= len(line.body)
                if found and (room < 0 or len(found) == MAX_BATCH_ITEMS):
                    return found
                found.append(line)
        return found

    def _packed(self, lines: list[Line], *, complete: bool) -> Outgoing | None:
        """Return a batch of as many of these as fit; None if some were garbled, and are gone."""
        items: list[Item] = []
        garbled: list[Line] = []
        for line in lines:
            try:
                items.append(line.item())
            except DecodeError as error:
                log.error("outbox: item %d is garbled: %s", line.seq, error)
                garbled.append(line)
        if garbled:
            self._lose([{_PLURALS[line.kind]: 1} for line in garbled])
            numbers = {line.seq for line in garbled}
            for segment in self._log.all:
                segment.entries = [e for e in segment.entries if e.seq not in numbers]
            return None
        while True:
            try:
                return Outgoing(items[-1].seq, pack(batch_of(items, complete=complete)))
            except PackError:
                items = items[: len(items) // 2]

    # ---- room

    def _make_room(self, coming: int) -> None:
        try:
            while self.flash_bytes + coming > self._max_bytes:
                if not self._shrink():
                    return
        except OSError as error:
            # Where nothing can be written anew, whole segments can still be let go.
            while self.flash_bytes + coming > self._max_bytes and len(self._log.all) > 1:
                log.error("outbox: %s; the oldest reports are dropped", error.strerror)
                try:
                    self._give_up_oldest()
                except OSError:
                    return

    def _shrink(self) -> bool:
        """Make it smaller in the way that costs least; False: nothing is left to go."""
        if self._sweep():
            return True
        closed = self._log.all[:-1]
        for segment in closed:
            if not segment.merged:
                self._merge([segment])
                return True
        pairs = [
            (a.size + b.size, at)
            for at, (a, b) in enumerate(pairwise(closed))
            if not a.barren and a.size + b.size <= 4 * self._log.segment_bytes
        ]
        if pairs:
            _, at = min(pairs)
            self._merge(closed[at : at + 2])
            return True
        for kind in LEAST_FIRST:
            for seen in (False, True):
                for segment in closed:
                    if self._drop(segment, kind, seen=seen):
                        return True
        return False

    def _merge(self, segments: list[Segment]) -> None:
        """Write closed segments, one or two neighbours, as one with fewer items."""
        lines = [line for each in segments for line in lines_of(each, self._unacked(each))]
        kept = self._compacted(lines)
        first = segments[0]
        if len(kept) == sum(len(each.entries) for each in segments):
            if len(segments) > 1:
                first.barren = True
            first.merged = True
            return
        self._log.rewrite(segments, kept)
        self._merged += len(lines) - len(kept)

    def _drop(self, segment: Segment, kind: KindOfItem, *, seen: bool) -> bool:
        """Drop the items of a kind of which nobody, or perhaps somebody, saw any already."""
        entries = self._unacked(segment)
        doomed = {e.seq for e in entries if e.kind == kind and self._seen(e.seq) == seen}
        if not doomed:
            return False
        lines = list(lines_of(segment, entries))
        losses = [_loss_of(line, seen=seen) for line in lines if line.seq in doomed]
        kept = [line for line in lines if line.seq not in doomed]
        self._log.rewrite([segment], kept, lost=self._with(losses))
        self._count(losses)
        return True

    def _compacted(self, lines: list[Line]) -> list[Line]:
        """Merge what was never sent, between events and what was."""
        kept: list[Line] = []
        stretch: list[Line] = []
        for line in lines:
            if line.kind == "event" or self._seen(line.seq):
                kept += [*self._fewer(stretch), line]
                stretch = []
            else:
                stretch.append(line)
        return kept + self._fewer(stretch)

    def _fewer(self, lines: list[Line]) -> list[Line]:
        if len(lines) < 2:
            return lines
        from agent.core.merging import compact  # only where room runs out

        try:
            items = [item for line in lines if not isinstance(item := line.item(), DeviceEvent)]
            ages = {line.seq: line.t for line in lines}
            written = [Line.of(item, ages[item.seq]) for item in compact(items)]
            for line in written:
                line.item()  # sums have bounds, too
        except (DecodeError, PackError):
            return lines
        return written if len(written) < len(lines) else lines

    def _expire(self) -> None:
        """Drop what is too old, segment by segment."""
        oldest = self._t0 + self._mono() - self._max_age_s
        for segment in self._log.all[:-1]:
            if segment.t >= oldest:
                break
            if self._unacked(segment):
                self._let_go_of(segment)
        self._sweep()

    def _sweep(self) -> bool:
        """Remove the segments, but the newest, of which nothing waits; say if there were any.

        Raises:
            OSError: the disk refuses to remember what they alone tell.
        """
        done = [segment for segment in self._log.all[:-1] if not self._unacked(segment)]
        if done:
            if self._acked > self._log.memory.gone:
                self._log.remember(gone=self._acked)
            self._log.remove(done)
        return bool(done)

    def _lose(self, losses: list[dict[str, int]]) -> None:
        """Count what was lost; it is on the disk with the next thing that is."""
        self._log.remember(lost=self._with(losses), gone=self._acked)
        self._count(losses)

    def _with(self, losses: Iterable[Mapping[str, int]]) -> dict[str, int]:
        lost = dict(self._log.memory.lost)
        for loss in losses:
            for name, count in loss.items():
                lost[name] = lost.get(name, 0) + count
        return lost

    def _count(self, losses: list[dict[str, int]]) -> None:
        if losses and self._dropped == 0:
            log.warning("outbox: full; the least important of the oldest reports are dropped")
        self._dropped += len(losses)

    # ---- entries

    def _unacked(self, segment: Segment) -> list[Entry]:
        if segment.entries and segment.entries[0].seq > self._acked:
            return segment.entries
        return [entry for entry in segment.entries if entry.seq > self._acked]

    def _waiting(self) -> Iterable[tuple[Segment, Entry]]:
        return (
            (segment, entry) for segment in self._log.all for entry in self._unacked(segment)
        )  # fmt: skip

    def _seen(self, seq: int) -> bool:
        memory = self._log.memory
        return seq <= memory.published or seq in memory.ahead


def _loss(item: Item, *, seen: bool) -> dict[str, int]:
    """Return how an item is counted that is lost; what others may have seen is counted apart."""
    sent = "_sent" if seen else ""
    loss = {_PLURALS[kind_of(item)] + sent: 1}
    if isinstance(item, ScoreWindow) and item.requests:
        loss[f"requests{sent}"] = item.requests
    return loss


def _loss_of(line: Line, *, seen: bool) -> dict[str, int]:
    try:
        return _loss(line.item(), seen=seen)
    except DecodeError:
        return {_PLURALS[line.kind]: 1}
