"""Regions of POSIX shared memory that apps register, for tensors that stay out of the request.

A region is an open file of /dev/shm, read and written by system calls and never mapped: its owner
may shrink it at any time, and a process that touches a page which is gone is killed by SIGBUS,
where a system call comes back short. It cannot be sealed against that either, since only memfds
can. The one copy this costs also keeps an app from changing a tensor after it was checked.

Regions are the device's and not one engine's: the daemon holds their descriptors too, and every
engine knows what is registered with another.
"""

import asyncio
import os
import stat
from collections import deque
from dataclasses import dataclass
from typing import Any

from agent.engine.errors import HttpError, bad_request
from agent.regions import (
    MAX_KEY_CHARACTERS,
    MAX_NAME_CHARACTERS,
    MAX_REGIONS,
    Forget,
    Keep,
    Noted,
    Passage,
    Word,
)

FOLDER = "/dev/shm"  # noqa: S108 where the C library keeps shared memory
NOTED_WITHIN_S = 2.0
"""How long an app waits for the daemon; without it, its region ends with this engine."""
MAX_TENSOR_BYTES = 64 * 1024 * 1024
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Region:
    """A registered part of a shared-memory object; `key` is the object's name.

    It is closed when the last request that reads or writes it is over.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    fd: int

    def __del__(self) -> None:
        os.close(self.fd)

    def describe(self) -> dict[str, Any]:
        """Return what a status request is told."""
        return {
            "name": self.name,
            "key": self.key,
            "offset": self.offset,
            "byte_size": self.byte_size,
        }


@dataclass(frozen=True, slots=True)
class Span:
    """Where one tensor lies in a region, or is wanted."""

    region: Region
    offset: int
    byte_size: int

    def read(self, what: str) -> bytes:
        """Return the bytes as they are now; `what` names the tensor in errors.

        Raises:
            HttpError: the object has been shrunk since it was registered.
        """
        data = os.pread(self.region.fd, self.byte_size, self.region.offset + self.offset)
        if len(data) != self.byte_size:
            raise self._shrunk(what, len(data))
        return data

    def write(self, what: str, data: bytes) -> None:
        """Put `data` at the beginning of the span.

        Raises:
            HttpError: it does not fit, the object has been shrunk, or there is no memory for it.
        """
        if len(data) > self.byte_size:
            raise bad_request(
                f"{what}: shared_memory_byte_size: expected at least the tensor's {len(data)} "
                f"bytes, got {self.byte_size}"
            )
        at = self.region.offset + self.offset
        # A write beyond its end would make the object larger again.
        there = os.fstat(self.region.fd).st_size - at
        if there < len(data):
            raise self._shrunk(what, max(0, there))
        try:
            written = os.pwrite(self.region.fd, data, at)
        except OSError:
            written = 0
        if written != len(data):
            raise HttpError(
                503,
                f"{what}: {self.region.key}: expected room for {len(data)} bytes, got {written}: "
                f"{FOLDER} is full",
            )

    def _shrunk(self, what: str, there: int) -> HttpError:
        return bad_request(
            f"{what}: shared memory region {self.region.name!r}: expected {self.byte_size} bytes "
            f"at offset {self.offset}, got {there}: {self.region.key} has been shrunk; "
            "register it again"
        )


class Regions:
    """The regions that apps of this device may name in requests."""

    def __init__(self, passage: Passage | None = None) -> None:
        """Prepare; `passage` leads to the daemon and is followed from `connect` on."""
        self._regions: dict[str, Region] = {}
        self._passage = passage
        self._unnoted: deque[asyncio.Future[None]] = deque()

    def connect(self) -> None:
        """Take up what the daemon holds and will hold."""
        if self._passage is not None:
            asyncio.get_running_loop().add_reader(self._passage, self._hear)

    async def register(self, name: str, fields: dict[str, Any]) -> None:
        """Open the object that `key` names.

        Where there are too many, one goes whose owner has unlinked it.

        Raises:
            HttpError: it cannot be, or there is a region of this name, or too many.
        """
        key, offset, size = fields.get("key"), fields.get("offset", 0), fields.get("byte_size")
        if not name or len(name) > MAX_NAME_CHARACTERS:
            raise bad_request(f"region: expected a name of 1 to {MAX_NAME_CHARACTERS} characters")
        if name in self._regions:
            raise bad_request(f"region {name!r} is registered already; unregister it first")
        if not isinstance(key, str) or not _is_plain(key.removeprefix("/")):
            raise bad_request(
                f"region {name!r}: key: expected the name of a shared-memory object, such as "
                f"/frames, without further slashes, got {str(key)[:80]!r}"
            )
        if type(offset) is not int or type(size) is not int or offset < 0 or size < 1:
            raise bad_request(
                f"region {name!r}: expected an offset from 0 and a byte_size from 1, "
                f"got {str(offset)[:40]} and {str(size)[:40]}"
            )
        gone = self._room()
        region = Region(name, key, offset, size, _open(name, key, offset + size))
        if gone is not None:
            self._drop(gone)
        self._regions[name] = region
        await self._tell(Keep(name, key, offset, size), region.fd)

    async def unregister(self, name: str) -> None:
        """Close one region; none of that name is no error."""
        if name in self._regions:
            await self._drop(name)

    async def unregister_all(self) -> None:
        """Close all regions."""
        for told in [self._drop(name) for name in list(self._regions)]:
            await told

    def status(self, name: str | None = None) -> list[dict[str, Any]]:
        """Describe all regions or the one of that name.

        Raises:
            HttpError: there is none.
        """
        if name is None:
            return [region.describe() for region in self._regions.values()]
        return [self._region(name, "status").describe()]

    def span(self, what: str, parameters: dict[str, Any]) -> Span | None:
        """Return where a tensor's parameters say that it lies, None when they do not.

        Raises:
            HttpError: they name no region, or more than there is of it.
        """
        if "shared_memory_region" not in parameters:
            if "shared_memory_byte_size" in parameters or "shared_memory_offset" in parameters:
                raise bad_request(f"{what}: expected shared_memory_region with the other two")
            return None
        region = self._region(parameters["shared_memory_region"], what)
        offset = parameters.get("shared_memory_offset", 0)
        size = parameters.get("shared_memory_byte_size")
        if type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
            raise bad_request(
                f"{what}: expected whole numbers for shared_memory_byte_size and "
                f"shared_memory_offset, got {str(size)[:40]} and {str(offset)[:40]}"
            )
        if offset + size > region.byte_size or size > MAX_TENSOR_BYTES:
            raise bad_request(
                f"{what}: expected at most {MAX_TENSOR_BYTES} bytes within the "
                f"{region.byte_size} of shared memory region {region.name!r}, "
                f"got {size} at offset {offset}"
            )
        return Span(region, offset, size)

    def _region(self, name: Any, what: str) -> Region:
        region = self._regions.get(name) if isinstance(name, str) else None
        if region is None:
            # Another engine's, of a moment ago, may wait to be heard of.
            self._hear()
            region = self._regions.get(name) if isinstance(name, str) else None
        if region is None:
            raise bad_request(
                f"{what}: shared memory region {str(name)[:80]!r} is not registered; "
                f"register it (again: regions end with the agent)"
            )
        return region

    def _room(self) -> str | None:
        """Return the region that must go for another one, None when there is room.

        Raises:
            HttpError: none may go.
        """
        if len(self._regions) < MAX_REGIONS:
            return None
        for region in self._regions.values():
            if os.fstat(region.fd).st_nlink == 0:
                return region.name
        raise HttpError(503, f"{MAX_REGIONS} regions are registered already; unregister some")

    def _drop(self, name: str) -> "asyncio.Future[None]":
        del self._regions[name]
        return self._tell(Forget(name))

    def _tell(self, word: Word, fd: int | None = None) -> "asyncio.Future[None]":
        """Tell the daemon; done when every other engine was told, or after a while."""
        loop = asyncio.get_running_loop()
        noted = loop.create_future()
        if self._passage is None:
            noted.set_result(None)
            return noted
        self._unnoted.append(noted)
        try:
            self._passage.send(word, fd)
        except OSError:
            self._hang_up()
        loop.call_later(NOTED_WITHIN_S, _settle, noted)
        return noted

    def _hear(self) -> None:
        """Do as the daemon says."""
        if self._passage is None:
            return
        try:
            for word, fd in self._passage.receive():
                self._do(word, fd)
        except (EOFError, ValueError, OSError):
            self._hang_up()

    def _do(self, word: Word, fd: int | None) -> None:
        match word:
            case Keep(name, key, offset, size):
                assert fd is not None
                self._regions[name] = Region(name, key, offset, size, fd)
            case Forget(name):
                self._regions.pop(name, None)
            case Noted() if self._unnoted:
                _settle(self._unnoted.popleft())

    def _hang_up(self) -> None:
        """Go on alone."""
        assert self._passage is not None
        asyncio.get_running_loop().remove_reader(self._passage)
        self._passage.close()
        self._passage = None
        while self._unnoted:
            _settle(self._unnoted.popleft())


def _settle(noted: "asyncio.Future[None]") -> None:
    if not noted.done():
        noted.set_result(None)


def _is_plain(key: str) -> bool:
    return (
        0 < len(key) < MAX_KEY_CHARACTERS
        and key not in (".", "..")
        and key.isascii()
        and key.isprintable()
        and "/" not in key
    )


def _open(name: str, key: str, needed: int) -> int:
    """Return a descriptor of an object that has `needed` bytes at least."""
    try:
        fd = os.open(f"{FOLDER}/{key.removeprefix('/')}", _FLAGS)
    except OSError as error:
        raise bad_request(
            f"region {name!r}: key: expected a shared-memory object that the engine's user may "
            f"read and write, got {key!r}: {error.strerror}"
        ) from None
    there = os.fstat(fd)
    if not stat.S_ISREG(there.st_mode) or there.st_size < needed:
        os.close(fd)
        raise bad_request(
            f"region {name!r}: expected {needed} bytes (offset and byte_size together) in {key}, "
            f"got {there.st_size}"
        )
    return fd
