"""What a power cut could leave of a directory, given all that was done to it.

    recording.contents(at, loss)    what is on the disk when `loss` befalls it before operation `at`

A disk may keep, lose, zero or tear what nobody synced, names and bytes apart from each other.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.operations import (
    Create,
    MakeDirectory,
    Move,
    MoveDirectory,
    Naming,
    Operation,
    Remove,
    Resize,
    Sync,
    SyncNames,
    Write,
)


@dataclass(frozen=True, slots=True)
class Note:
    """What the test knew at this point; no operation."""

    what: str
    about: Any = None


@dataclass(frozen=True, slots=True)
class Loss:
    """Which of the operations that were not synced the cut undoes.

    names: none or all of the directories' changes survive, or some of them.
    data: of files' bytes likewise; `zeros`: the sizes survive and the bytes do not; `torn`: all
    survives but the second half of the last write.
    """

    names: Literal["none", "all", "some"]
    data: Literal["none", "all", "zeros", "torn", "some"]
    seed: int = 0


LOSSES = (
    *(Loss(names, data) for names in ("none", "all") for data in ("none", "all", "zeros", "torn")),
    *(Loss("some", "some", seed) for seed in range(4)),
)

Contents = tuple[tuple[str, bytes | None], ...]
"""Sorted names below the root, with the bytes of files; None: a directory."""


def write_contents(contents: Contents, root: Path) -> None:
    root.mkdir()
    for name, data in contents:
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


def read_contents(root: Path) -> Contents:
    paths = sorted(root.rglob("*"))
    return tuple((str(p.relative_to(root)), None if p.is_dir() else p.read_bytes()) for p in paths)


@dataclass
class Recording:
    """The operations in their order, with the test's notes between them."""

    log: list[Operation | Note] = field(default_factory=list)

    def before(self, operation: Operation) -> None:
        pass

    def after(self, operation: Operation) -> None:
        self.log.append(operation)

    def note(self, what: str, about: Any = None) -> None:
        self.log.append(Note(what, about))

    def notes(self, at: int) -> Iterator[Note]:
        return (entry for entry in self.log[:at] if isinstance(entry, Note))

    def without(self, kind: type[Operation]) -> "Recording":
        """Return what a disk would have got from code that forgot these operations."""
        return Recording([entry for entry in self.log if not isinstance(entry, kind)])

    def contents(self, at: int, loss: Loss | None = None) -> Contents:
        """Return what lies on the disk when the power is cut before operation `at`."""
        log = self.log[:at]
        dice = random.Random(f"{at} {loss.seed if loss else 0}")
        names = self._names(log, loss, dice)
        found: list[tuple[str, bytes | None]] = []
        kept: set[str] = set()
        for name in sorted(names):
            parent = _parent(name)
            if parent != "." and parent not in kept:
                continue
            kept.add(name)
            file = names[name]
            found.append((name, None if file is None else self._bytes(log, file, loss, dice)))
        return tuple(found)

    def _names(
        self, log: list[Operation | Note], loss: Loss | None, dice: random.Random
    ) -> dict[str, int | None]:
        names: dict[str, int | None] = {}
        synced = {e.directory: at for at, e in enumerate(log) if isinstance(e, SyncNames)}
        # A directory's changes reach the disk in their order.
        cut = {"none": 0, "all": len(log)}
        cuts: dict[str, int] = {}
        for at, entry in enumerate(log):
            if not isinstance(entry, Naming):
                continue
            places = _directories(entry)
            if loss is not None and not any(synced.get(place, -1) > at for place in places):
                limit = cut.get(loss.names)
                if limit is None:
                    limit = cuts.setdefault(places[-1], dice.randrange(len(log) + 1))
                if at >= limit:
                    continue
            _rename(names, entry)
        return names

    def _bytes(
        self,
        log: list[Operation | Note],
        file: int,
        loss: Loss | None,
        dice: random.Random,
    ) -> bytes:
        synced = max((at for at, e in enumerate(log) if e == Sync(file)), default=-1)
        doubtful = [
            at
            for at, e in enumerate(log)
            if isinstance(e, (Write, Resize)) and e.file == file and at > synced
        ]
        content = bytearray()
        for at, entry in enumerate(log):
            if not isinstance(entry, (Write, Resize)) or entry.file != file:
                continue
            kept = entry
            if loss is not None and at > synced:
                survivor = _survivor(entry, loss, dice, last=at == doubtful[-1])
                if survivor is None:
                    continue
                kept = survivor
            _apply(content, kept)
        return bytes(content)


def _directories(entry: Naming) -> list[str]:
    if isinstance(entry, (Move, MoveDirectory)):
        return [_parent(entry.old), _parent(entry.new)]
    return [_parent(entry.name)]


def _parent(name: str) -> str:
    return name.rpartition("/")[0] or "."


def _rename(names: dict[str, int | None], entry: Naming) -> None:
    match entry:
        case MakeDirectory(name):
            names[name] = None
        case Create(name, file):
            names[name] = file
        case Move(file, old, new):
            if names.get(old) == file:
                del names[old]
            names[new] = file
        case MoveDirectory(old, new):
            for name in [each for each in names if f"{each}/".startswith(old + "/")]:
                names[new + name[len(old) :]] = names.pop(name)
            names[new] = None
        case Remove(name):
            names.pop(name, None)


def _survivor(
    entry: Write | Resize, loss: Loss, dice: random.Random, *, last: bool
) -> Write | Resize | None:
    fate = loss.data
    if fate == "some":
        fate = dice.choice(("none", "all", "zeros", "torn"))
        last = True
    if fate == "none":
        return None
    if isinstance(entry, Resize) or fate == "all" or (fate == "torn" and not last):
        return entry
    kept = len(entry.data) // 2 if fate == "torn" else 0
    return Write(entry.file, entry.offset, entry.data[:kept].ljust(len(entry.data), b"\0"))


def _apply(content: bytearray, entry: Write | Resize) -> None:
    if isinstance(entry, Resize):
        del content[entry.size :]
        content.extend(bytes(entry.size - len(content)))
        return
    end = entry.offset + len(entry.data)
    content.extend(bytes(max(end - len(content), 0)))
    content[entry.offset : end] = entry.data
