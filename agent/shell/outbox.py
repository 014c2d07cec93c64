"""Telemetry that waits on disk until the controller has it.

Segments of lines {"seq", "kind", "body"}, the body deflated as it travels and base64. The newest
segment stays even when all of it is acknowledged: it remembers the last sequence number, which
must never be given out twice.
"""

import base64
import errno
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wire.codec import encode
from wire.telemetry import Health, ScoreWindow
from wire.topics import Kind

log = logging.getLogger(__name__)

SEGMENTS = 16
MAX_SEGMENT_BYTES = 64 * 1024


@dataclass(slots=True)
class _Segment:
    path: Path
    size: int = 0
    sequences: list[int] = field(default_factory=list)


class Outbox:
    """A durable queue with a bound; not for several threads at a time."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Open what an earlier run left; torn lines of a power cut are passed over."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._segment_bytes = min(MAX_SEGMENT_BYTES, max_bytes // SEGMENTS)
        self._dropped = 0
        self._written = 0
        self._fd: int | None = None
        self._dirty = False
        self._new_name = False
        self._troubled = False
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._segments = [_scan(path) for path in sorted(directory.glob("*.jsonl"))]
        oldest = min((s for segment in self._segments for s in segment.sequences), default=1)
        self._acked = oldest - 1
        self._trim(0)

    @property
    def dropped(self) -> int:
        """Items lost since start for want of room."""
        return self._dropped

    @property
    def waiting(self) -> int:
        """Items that are not acknowledged."""
        return sum(self._unacked(segment) for segment in self._segments)

    @property
    def flash_bytes(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def bytes_written(self) -> int:
        """Bytes given to the disk since start, without the file system's own."""
        return self._written

    @property
    def acked(self) -> int:
        """Everything up to here is known to be acknowledged, or gone."""
        return self._acked

    def last_seq(self) -> int:
        """Return the highest sequence number on disk; 0: none was ever queued."""
        return max((s for segment in self._segments for s in segment.sequences), default=0)

    def enqueue(self, item: ScoreWindow | Health) -> None:
        """Keep an item until `forget`. With the disk full the oldest goes, or else this one."""
        kind = Kind.HEALTH if isinstance(item, Health) else Kind.SCORES
        body = base64.b64encode(encode(item, deflate=True)).decode()
        line = json.dumps({"seq": item.seq, "kind": kind, "body": body}).encode() + b"\n"
        self._trim(len(line))
        for attempt in (1, 2):
            try:
                self._append(item.seq, line)
            except OSError as error:
                self._close()
                if attempt == 1 and len(self._segments) > 1:
                    self._drop_oldest()
                    continue
                self._dropped += 1
                if not self._troubled:
                    log.error("outbox: reports are being lost: %s", error.strerror)
                self._troubled = True
            else:
                self._troubled = False
            return

    def pending(self, limit: int) -> list[tuple[Kind, int, bytes]]:
        """Return kind, sequence number and body of the oldest `limit` items, oldest first.

        They are on the disk when this returns: a number that was seen by others and then lost
        in a power cut would be given to another item.
        """
        self._sync()
        found: list[tuple[Kind, int, bytes]] = []
        for segment in self._segments:
            if len(found) >= limit:
                break
            if self._unacked(segment):
                found += [item for item in _items(segment.path) if item[1] > self._acked]
        return found[:limit]

    def forget(self, seq: int) -> None:
        """Drop everything up to `seq`: the controller has it."""
        self._acked = max(self._acked, seq)
        while len(self._segments) > 1 and not self._unacked(self._segments[0]):
            self._remove_oldest()

    def close(self) -> None:
        """Bring everything to the disk."""
        self._sync()
        self._close()

    def _append(self, seq: int, line: bytes) -> None:
        segment = self._segments[-1] if self._segments else None
        if self._fd is None or segment is None or segment.size + len(line) > self._segment_bytes:
            segment = self._begin(seq)
        assert self._fd is not None
        done = os.write(self._fd, line)
        segment.size += done
        self._written += done
        self._dirty = True
        if done < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        segment.sequences.append(seq)

    def _begin(self, seq: int) -> _Segment:
        # Never on after a possibly torn line: every run begins a segment of its own.
        self._sync()
        self._close()
        path = self._directory / f"{seq:020d}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o640)
        self._new_name = True
        if self._segments and self._segments[-1].path == path:
            self._segments.pop()  # the disk took only a part of its first line
        self._segments.append(_Segment(path))
        return self._segments[-1]

    def _trim(self, coming: int) -> None:
        while len(self._segments) > 1 and self.flash_bytes + coming > self._max_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        lost = self._unacked(self._segments[0])
        if lost and self._dropped == 0:
            log.warning("outbox: full; the oldest reports are dropped")
        self._dropped += lost
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        self._segments.pop(0).path.unlink(missing_ok=True)

    def _unacked(self, segment: _Segment) -> int:
        return sum(seq > self._acked for seq in segment.sequences)

    def _sync(self) -> None:
        if self._fd is not None and self._dirty:
            os.fsync(self._fd)
            if self._new_name:  # or the segment is lost whole, and its numbers are given out again
                self._sync_directory()
            self._dirty = self._new_name = False

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _scan(path: Path) -> _Segment:
    return _Segment(path, path.stat().st_size, [seq for _, seq, _ in _items(path)])


def _items(path: Path) -> Iterator[tuple[Kind, int, bytes]]:
    """Yield what can be read of a segment."""
    for line in path.read_bytes().splitlines():
        try:
            item = json.loads(line)
            yield Kind(item["kind"]), int(item["seq"]), base64.b64decode(item["body"])
        except (ValueError, KeyError, TypeError):
            continue
