"""The files of the outbox: segments of lines of JSON, which are only appended to.

A line is an item {"seq", "first", "kind", "t", "body"}, its body packed as it travels and base64;
or all that is remembered beside the items, {"memory": {...}}; or both, and then they are one.
Of the memories in all segments the one with the highest revision counts. A segment is written
anew as a whole, and with the memory: what is dropped from it is counted in the same write.
"""

import base64
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wire.codec import DecodeError, decode
from wire.packing import pack, unpack
from wire.telemetry import Batch, DeviceEvent, Health, Item, ScoreWindow

KindOfItem = Literal["window", "health", "event"]
KINDS = ("window", "health", "event")
SPARE_BYTES = 4096
"""Kept on a disk that is not full, for a word of memory on one that is."""


class Line(NamedTuple):
    """An item as it is kept."""

    seq: int
    first: int
    kind: KindOfItem
    t: int
    """When it came, in seconds of running agents."""
    body: str

    @classmethod
    def of(cls, item: Item, t: int) -> "Line":
        """Write an item.

        Raises:
            PackError: it is too long for any message.
        """
        body = base64.b64encode(pack(batch_of([item], complete=False))).decode()
        first = item.first if not isinstance(item, DeviceEvent) else None
        return cls(item.seq, first or item.seq, kind_of(item), t, body)

    def item(self) -> Item:
        """Read the item.

        Raises:
            DecodeError: the disk garbled it.
        """
        try:
            (item,) = unpack(base64.b64decode(self.body)).items()
        except ValueError as error:
            raise DecodeError(str(error)) from None
        return item

    def write(self, memory: "Memory | None" = None) -> bytes:
        """Return it as bytes, with `memory` if that is to be one with it."""
        values: dict[str, object] = {"seq": self.seq, "kind": self.kind, "t": self.t}
        if self.first != self.seq:
            values["first"] = self.first
        if memory is not None:
            values["memory"] = memory.values()
        return _json({**values, "body": self.body})


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered beside the items."""

    revision: int = 0
    starts: int = 0
    """How often a run began."""
    started: int = 0
    """When the latest did, by its clock."""
    end: int = 0
    """Of its latest window; 0: there was none."""
    owed: int = 0
    """Since when counts are missing that no event told of yet; 0: nothing."""
    clean: bool = False
    """The latest run ended well."""
    gone: int = 0
    """Everything up to here is acknowledged, or dropped and counted."""
    published: int = 0
    """Everything up to here may have been seen by others."""
    ahead: tuple[int, ...] = ()
    """And these."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """What was dropped, ever."""
    told: Mapping[str, int] = field(default_factory=dict)
    """And what of that events told of."""

    def values(self) -> dict[str, object]:
        """Return all that is not as it was in the beginning."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Memory":
        """Read what `values` returned.

        Raises:
            ValueError: it is something else.
            TypeError: likewise.
        """
        known: dict[str, Any] = {}
        for each in fields(cls):
            value = values.get(each.name)
            if value is None:
                continue
            if each.name == "ahead":
                known[each.name] = tuple(int(seq) for seq in value)
            elif each.name in ("lost", "told"):
                known[each.name] = {str(name): int(count) for name, count in value.items()}
            else:
                known[each.name] = bool(value) if each.name == "clean" else int(value)
        return cls(**known)


class Entry(NamedTuple):
    """What is known of an item without reading it."""

    seq: int
    kind: KindOfItem
    at: int
    """Where its line begins in the file."""
    size: int


@dataclass(slots=True, eq=False)
class Segment:
    """One file."""

    path: Path
    size: int = 0
    entries: list[Entry] = field(default_factory=list)
    t: int = 0
    """Of its newest item."""
    merged: bool = False
    """Nothing in it can be merged with anything else in it."""
    barren: bool = False
    """Nor with anything of the next one."""

    def take(self, line: Line, at: int, size: int) -> None:
        """Note an item of it."""
        self.entries.append(Entry(line.seq, line.kind, at, size))
        self.t = max(self.t, line.t)


class Segments:
    """All of them, oldest first, and what they remember."""

    def __init__(self, directory: Path, segment_bytes: int) -> None:
        """Read what an earlier run left; torn lines of a power cut are passed over."""
        self._directory = directory
        self.segment_bytes = segment_bytes
        self.memory = Memory()
        self.torn_since = 0
        """End of the last window before what a power cut tore in the newest segment; 0: nothing."""
        self.written = 0
        self._fd: int | None = None
        self._dirty = False
        self._new_name = False
        self._holder: Segment | None = None
        """The segment in which `memory` stands; None: it stands nowhere yet."""
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        for leftover in directory.glob("*.tmp"):
            leftover.unlink()
        self.all: list[Segment] = []
        last = 0
        for path in sorted(directory.glob("*.jsonl")):
            if path.stem.isdecimal():
                last = self._scan(path, last)
        memory = self.memory
        if self.all and not memory.clean:
            # A kill is no power cut, but one may follow: what was read must be there to stay.
            self._sync_found(self.all[-1])
        self.last = max(last, memory.published, memory.gone, *memory.ahead, 0)
        self._set_spare_aside()

    def _scan(self, path: Path, last: int) -> int:
        """Take up a segment; what is not above `last` was merged into one before it."""
        segment = Segment(path, path.stat().st_size)
        self.all.append(segment)
        self.torn_since = at = 0
        for text in path.read_bytes().splitlines(keepends=True):
            line, memory, of_old = _read(text)
            if line is None and memory is None:
                self.torn_since = self.torn_since or self.memory.end or self.memory.started
            if memory is not None and memory.revision > self.memory.revision:
                self.memory, self._holder = memory, segment
            if line is not None and line.seq > last:
                last = line.seq
                segment.take(line, at, len(text))
                if of_old:
                    # That agent did not keep what it had sent: it may be anything.
                    self.remember(published=max(self.memory.published, last))
            at += len(text)
        return last

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self.all)

    def remember(self, **changes: Any) -> None:
        """Change the memory; it is on the disk after `note` or the next item that carries it."""
        self.memory = replace(self.memory, **changes)
        self._holder = None

    # ---- writing

    def append(self, line: Line, *, carrying: Mapping[str, Any] | None = None) -> None:
        """Add an item, one with a change of the memory or without.

        Raises:
            OSError: the disk refuses; the item is not there, and the change not made.
        """
        self._ready(len(line.write(self.memory if carrying else None)))
        memory = None
        if carrying:
            memory = replace(self.memory, **carrying, revision=self.memory.revision + 1)
        data = line.write(memory)
        segment = self.all[-1]
        at = segment.size
        self._write(data)
        segment.take(line, at, len(data))
        if memory is not None:
            self.memory, self._holder = memory, segment

    def note(self) -> None:
        """Write the memory down, if it stands nowhere yet.

        Raises:
            OSError: the disk refuses.
        """
        if self._holder is None:
            memory = replace(self.memory, revision=self.memory.revision + 1)
            data = _json({"memory": memory.values()})
            self._ready(len(data))
            if self._holder is None:
                self._write_at_need(data)
                self.memory, self._holder = memory, self.all[-1]

    def begin(self) -> None:
        """Begin a new segment; the others are never appended to again.

        Raises:
            OSError: the disk refuses.
        """
        # Never on after a possibly torn line: every run begins a segment of its own.
        self.sync()
        self.let_go()
        before = int(self.all[-1].path.stem) if self.all else 0
        path = self._directory / f"{before + 1:020d}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o640)
        self._new_name = True
        segment = Segment(path)
        self.all.append(segment)
        memory = replace(self.memory, revision=self.memory.revision + 1)
        try:
            self._write_at_need(_json({"memory": memory.values()}))
        except OSError:
            self.all.pop()
            path.unlink()
            raise
        self.memory, self._holder = memory, segment

    def rewrite(self, segments: list[Segment], lines: list[Line], **changes: Any) -> None:
        """Write closed segments, neighbours, as one with these items, and change the memory.

        Raises:
            OSError: the disk refuses; all is as before.
        """
        # What the memory says of items must not be on the disk before these.
        self.sync()
        memory = replace(self.memory, **changes, revision=self.memory.revision + 1)
        anew = Segment(segments[0].path, merged=True)
        data = bytearray()
        for line in lines:
            text = line.write()
            anew.take(line, len(data), len(text))
            data += text
        data += _json({"memory": memory.values()})
        anew.size = len(data)
        self._replace(anew.path, data)
        self.memory, self._holder = memory, anew
        place = self.all.index(segments[0])
        self.all[place : place + len(segments)] = [anew]
        if place > 0:
            self.all[place - 1].barren = False
        for segment in segments[1:]:
            segment.path.unlink()

    def remove(self, segments: list[Segment]) -> None:
        """Take closed segments off the disk, once nothing is remembered there alone.

        Raises:
            OSError: the disk refuses; they stay.
        """
        if self._holder in segments:
            self._holder = None
        self.note()
        self.sync()
        for segment in segments:
            self.all.remove(segment)
            segment.path.unlink()
        self._set_spare_aside()

    def sync(self) -> None:
        """Have it all on the disk when this returns.

        Raises:
            OSError: the disk refuses.
        """
        if self._fd is not None and self._dirty:
            os.fsync(self._fd)
            if self._new_name:  # or the segment is lost whole, and its numbers are given out again
                self._sync_directory()
            self._dirty = self._new_name = False

    def let_go(self) -> None:
        """Close the newest segment; the next write begins another one."""
        if self._fd is not None:
            # What is remembered later must not be on the disk before what is written here.
            with suppress(OSError):
                self.sync()
            os.close(self._fd)
            self._fd = None

    def _ready(self, coming: int) -> None:
        if self._fd is None or self.all[-1].size + coming > self.segment_bytes:
            self.begin()

    def _write(self, data: bytes) -> None:
        assert self._fd is not None
        try:
            done = os.write(self._fd, data)
            self.all[-1].size += done
            self.written += done
            self._dirty = True
            if done < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.let_go()
            raise

    def _write_at_need(self, data: bytes) -> None:
        """Write to the newest segment, from the spare room if there is no other."""
        fd = self._fd
        assert fd is not None
        done = 0
        try:
            done = os.write(fd, data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                self.let_go()
                raise
        self.all[-1].size += done
        self.written += done
        self._dirty = True
        if done < len(data):
            self._spare.unlink(missing_ok=True)
            self._write((b"\n" if done else b"") + data)

    @property
    def _spare(self) -> Path:
        return self._directory / "spare"

    def _set_spare_aside(self) -> None:
        try:
            fd = os.open(self._spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except OSError:
            return  # it is there, or there is no room for it
        try:
            self.written += os.write(fd, bytes(SPARE_BYTES))
        except OSError:
            self._spare.unlink()
        finally:
            os.close(fd)

    def _replace(self, path: Path, data: bytes | bytearray) -> None:
        temporary = self._directory / "anew.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            view = memoryview(data)
            while view:
                done = os.write(fd, view)
                self.written += done
                view = view[done:]
            os.fsync(fd)
        except OSError:
            os.close(fd)
            temporary.unlink()
            raise
        os.close(fd)
        temporary.replace(path)
        self._sync_directory()

    def _sync_found(self, segment: Segment) -> None:
        fd = os.open(segment.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._sync_directory()

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def lines_of(segment: Segment, entries: Iterable[Entry]) -> Iterator[Line]:
    """Read some items of a segment."""
    with segment.path.open("rb") as file:
        for entry in entries:
            file.seek(entry.at)
            line, _, _ = _read(file.read(entry.size))
            if line is not None:
                yield line


def kind_of(item: Item) -> KindOfItem:
    """Return what it is called on disk."""
    if isinstance(item, ScoreWindow):
        return "window"
    return "health" if isinstance(item, Health) else "event"


def batch_of(items: list[Item], *, complete: bool) -> Batch:
    """Return a batch of items that were checked one by one."""
    return Batch.model_construct(
        device=items[0].device,
        windows=tuple(item for item in items if isinstance(item, ScoreWindow)),
        health=tuple(item for item in items if isinstance(item, Health)),
        events=tuple(item for item in items if isinstance(item, DeviceEvent)),
        complete=complete,
    )


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _read(text: bytes) -> tuple[Line | None, Memory | None, bool]:
    """Return the item and the memory of a line, and whether the first agents wrote it."""
    try:
        value = json.loads(text)
        memory = Memory.read(value["memory"]) if "memory" in value else None
        if "seq" not in value:
            return None, memory, False
        if "t" not in value:
            return _read_as_before(value), None, True
        seq, kind = int(value["seq"]), value["kind"]
        if kind not in KINDS or not isinstance(value["body"], str):
            return None, None, False
        first = int(value.get("first", seq))
        return Line(seq, first, kind, int(value["t"]), value["body"]), memory, False
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, None, False


def _read_as_before(value: Mapping[str, Any]) -> Line:
    """Read a line of the first agents: {"seq", "kind", "body"}, a deflated document in base64."""
    body = base64.b64decode(value["body"])
    item: Item
    item = decode(Health, body) if value["kind"] == "health" else decode(ScoreWindow, body)
    return Line.of(item, 0)
