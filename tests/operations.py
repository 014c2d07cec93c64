"""What real code does to a directory, as values; and a tap that tells of it, or lets it fail.

    recording = Recording()
    with DiskTap(root, recording):
        ... the real code works in `root` ...

The tap replaces functions of `os` while it is open. Whether it saw everything is for the test to
check: `Recording.contents` must be what the directory really holds.
"""

import os
import pathlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    name: str


@dataclass(frozen=True, slots=True)
class Create:
    name: str
    file: int


@dataclass(frozen=True, slots=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    file: int


@dataclass(frozen=True, slots=True)
class SyncNames:
    directory: str


@dataclass(frozen=True, slots=True)
class Move:
    file: int
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class MoveDirectory:
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Remove:
    name: str


Naming = MakeDirectory | Create | Move | MoveDirectory | Remove
Operation = Naming | Write | Resize | Sync | SyncNames


class Watcher(Protocol):
    """Learns of every operation: before it, when it may raise an OSError instead, and after."""

    def before(self, operation: Operation) -> None: ...

    def after(self, operation: Operation) -> None: ...


class DiskTap:
    """Tells `watcher` of each operation below `root`, one at a time, in the order of the disk."""

    def __init__(self, root: Path, watcher: Watcher) -> None:
        self._root = str(root)
        self._watcher = watcher
        self._lock = threading.RLock()
        self._files: dict[str, int] = {}
        self._numbered = 0
        self._open: dict[int, tuple[int, int | str]] = {}
        """Descriptor -> inode, and the file or directory it stands for."""
        self._foreign: set[int] = set()
        """Files that a buffer or a child process writes: what it wrote is seen at the sync."""
        self._real: dict[str, Callable[..., Any]] = {}
        self._open_path = pathlib.Path.open

    def __enter__(self) -> "DiskTap":
        taps = {
            "open": self._tap_open,
            "dup": self._tap_dup,
            "pwrite": self._tap_pwrite,
            "write": self._tap_write,
            "ftruncate": self._tap_ftruncate,
            "fsync": self._tap_fsync,
            "fdatasync": self._tap_fsync,
            "replace": self._tap_replace,
            "rename": self._tap_replace,
            "unlink": self._tap_unlink,
            "remove": self._tap_unlink,
            "mkdir": self._tap_mkdir,
            "rmdir": self._tap_rmdir,
        }
        for name, tap in taps.items():
            self._real[name] = getattr(os, name)
            setattr(os, name, tap)
        self._open_path = pathlib.Path.open

        def open_path(path: Path, mode: str = "r", **named: Any) -> Any:
            return self._tap_open_path(path, mode, **named)

        pathlib.Path.open = open_path  # type: ignore[assignment,method-assign]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pathlib.Path.open = self._open_path  # type: ignore[method-assign]
        for name, real in self._real.items():
            setattr(os, name, real)

    def find(self, contents: Iterable[tuple[str, bytes | None]]) -> None:
        """Tell of what was there before, as if it had been written and synced just now."""
        for name, data in contents:
            if data is None:
                self._watcher.after(MakeDirectory(name))
                continue
            file = self._number(name)
            self._watcher.after(Create(name, file))
            self._watcher.after(Write(file, 0, data))
            self._watcher.after(Sync(file))
        self._watcher.after(SyncNames("."))

    def _do(self, operation: Operation, really: Callable[[], Any]) -> Any:
        self._watcher.before(operation)
        answer = really()
        self._watcher.after(operation)
        return answer

    def _name(self, path: Any, directory: int | None = None) -> str | None:
        if directory is not None:
            parent = self._meant(directory)
            return os.path.normpath(f"{parent}/{path}") if isinstance(parent, str) else None
        text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        if text == self._root:
            return "."
        inside = isinstance(text, str) and text.startswith(self._root + "/")
        return os.path.relpath(text, self._root) if inside else None

    def _number(self, name: str) -> int:
        if name not in self._files:
            self._numbered += 1
            self._files[name] = self._numbered
        return self._files[name]

    def _meant(self, fd: int) -> int | str | None:
        inode, meant = self._open.get(fd, (0, None))
        return meant if inode and os.fstat(fd).st_ino == inode else None

    def _know(self, fd: int, meant: int | str) -> int:
        self._open[fd] = (os.fstat(fd).st_ino, meant)
        return fd

    def _tap_open(self, path: Any, flags: int, *more: Any, **named: Any) -> int:
        def really() -> int:
            fd: int = self._real["open"](path, flags, *more, **named)
            return fd

        with self._lock:
            name = self._name(path, named.get("dir_fd"))
            if name is None:
                return really()
            if Path(self._root, name).is_dir():
                return self._know(really(), name)
            if flags & os.O_CREAT and not os.path.lexists(path):
                fd = self._created(name, really)
                return self._know(fd, self._files[name])
            file = self._number(name)
            fd = self._do(Resize(file, 0), really) if flags & os.O_TRUNC else really()
            return self._know(fd, file)

    def _created(self, name: str, really: Callable[[], Any]) -> Any:
        self._files.pop(name, None)
        return self._do(Create(name, self._number(name)), really)

    def _tap_open_path(self, path: Path, mode: str, **named: Any) -> Any:
        def really() -> Any:
            return self._open_path(path, mode, **named)

        with self._lock:
            name = self._name(path)
            if name is None:
                return really()
            if set(mode) & set("wxa+"):
                file = self._created(name, really)
                if named.get("buffering") != 0:
                    self._foreign.add(self._files[name])
            else:
                file = really()
                if name not in self._files:
                    self._watcher.after(Create(name, self._number(name)))
                    self._foreign.add(self._files[name])
            self._know(file.fileno(), self._files[name])
            return file

    def _tap_dup(self, fd: int) -> int:
        with self._lock:
            meant = self._meant(fd)
            other: int = self._real["dup"](fd)
            return other if meant is None else self._know(other, meant)

    def _tap_pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._write("pwrite", fd, data, offset, offset)

    def _tap_write(self, fd: int, data: Any) -> int:
        return self._write("write", fd, data, None)

    def _write(self, how: str, fd: int, data: Any, offset: int | None, *more: Any) -> int:
        with self._lock:
            meant = self._meant(fd)
            if not isinstance(meant, int):
                done: int = self._real[how](fd, data, *more)
                return done
            if offset is None:  # these descriptors append
                offset = os.fstat(fd).st_size
            self._watcher.before(Write(meant, offset, bytes(data)))
            done = self._real[how](fd, data, *more)
            self._watcher.after(Write(meant, offset, bytes(data)[:done]))
            return done

    def _tap_ftruncate(self, fd: int, size: int) -> None:
        with self._lock:
            meant = self._meant(fd)
            if isinstance(meant, int):
                self._do(Resize(meant, size), lambda: self._real["ftruncate"](fd, size))
            else:
                self._real["ftruncate"](fd, size)

    def _tap_fsync(self, fd: int) -> None:
        with self._lock:
            meant = self._meant(fd)
            if meant is None:
                self._real["fsync"](fd)
            else:  # the real disk is not what is tested here, and slow
                if isinstance(meant, int) and meant in self._foreign:
                    self._foreign.discard(meant)
                    [name] = (name for name, file in self._files.items() if file == meant)
                    with self._open_path(Path(self._root, name), "rb") as file:
                        self._watcher.after(Write(meant, 0, file.read()))
                told = SyncNames(meant) if isinstance(meant, str) else Sync(meant)
                self._do(told, lambda: None)

    def _tap_replace(self, old: Any, new: Any, **named: Any) -> None:
        with self._lock:
            before, after = self._name(old), self._name(new)
            if before is None or after is None:
                self._real["replace"](old, new, **named)
                return
            if Path(self._root, before).is_dir():
                self._move_directory(before, after, lambda: self._real["rename"](old, new))
                return
            move = Move(self._number(before), before, after)
            self._do(move, lambda: self._real["replace"](old, new, **named))
            self._files[after] = self._files.pop(before)

    def _move_directory(self, old: str, new: str, really: Callable[[], Any]) -> None:
        self._do(MoveDirectory(old, new), really)
        for name in [each for each in self._files if each.startswith(old + "/")]:
            self._files[new + name[len(old) :]] = self._files.pop(name)

    def _tap_unlink(self, path: Any, **named: Any) -> None:
        self._remove("unlink", path, named)

    def _tap_rmdir(self, path: Any, **named: Any) -> None:
        self._remove("rmdir", path, named)

    def _remove(self, how: str, path: Any, named: dict[str, Any]) -> None:
        with self._lock:
            name = self._name(path, named.get("dir_fd"))
            if name is None:
                self._real[how](path, **named)
                return
            self._do(Remove(name), lambda: self._real[how](path, **named))
            self._files.pop(name, None)

    def _tap_mkdir(self, path: Any, *more: Any, **named: Any) -> None:
        with self._lock:
            name = self._name(path)
            if name is None or name == ".":
                self._real["mkdir"](path, *more, **named)
            else:
                self._do(MakeDirectory(name), lambda: self._real["mkdir"](path, *more, **named))


# ---- a disk that fails


@dataclass
class Fault:
    """Lets one operation below `within` fail, once `skip` of them passed; armed by the test."""

    code: int
    skip: int
    within: str | tuple[str, ...] = ""
    armed: bool = False
    struck: Operation | None = None
    _seen: int = 0
    _names: dict[int, str] = field(default_factory=dict)

    @property
    def lost_bytes(self) -> bool:
        """Whether bytes of a transfer may be lost by it: such a file must never be believed."""
        lossy = isinstance(self.struck, (Write, Sync))
        return lossy and self._name(self.struck).startswith("partial/")

    def before(self, operation: Operation) -> None:
        if isinstance(operation, Create):
            self._names[operation.file] = operation.name
        if not self.armed or not self._name(operation).startswith(self.within):
            return
        self._seen += 1
        if self._seen == self.skip + 1:
            self.struck = operation
            raise OSError(self.code, os.strerror(self.code))

    def after(self, operation: Operation) -> None:
        pass

    def _name(self, operation: Operation | None) -> str:
        match operation:
            case Create(name, _) | MakeDirectory(name) | Remove(name) | Move(_, name, _):
                return name
            case MoveDirectory(name, _):
                return name
            case SyncNames(directory):
                return directory + "/"
            case Write(file, _, _) | Resize(file, _) | Sync(file):
                return self._names.get(file, "")
        return ""
