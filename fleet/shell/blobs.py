"""Files by digest on the controller's disk, and the form in which they travel.

blobs/{hex}                the file
transfers/{hex}.zst        its compressed form, where that pays
transfers/{hex}.index      the hashes of the chunks of what travels
transfers/{hex}.json       the Offer; written last, so that it vouches for the other two
"""

import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import zstandard
from pydantic import ValidationError

from fleet.core.views import Refusal
from wire.ids import digest_hex
from wire.transfer import CHUNK_BYTES, FramePart, Offer, chunk_hash

ZSTD_LEVEL = 10
WORTH_IT = 0.97
"""A compressed form longer than this share of the file costs devices more than it saves."""

OPEN_FILES = 16


class Blobs:
    """A directory of files by digest. Safe to use from many threads."""

    def __init__(self, directory: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Open or create the store, and delete what a crash left half written.

        Files taken in from now on travel in chunks of `chunk_bytes`; earlier offers stand.
        """
        self._chunk_bytes = chunk_bytes
        self._blobs = directory / "blobs"
        self._transfers = directory / "transfers"
        for each in (self._blobs, self._transfers):
            each.mkdir(parents=True, exist_ok=True)
            for partial in each.glob("tmp*"):
                partial.unlink(missing_ok=True)
        self._offers: dict[str, Offer] = {}
        self._building = threading.Lock()
        self._reading = threading.Lock()
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()

    def has(self, digest: str) -> bool:
        """Return whether the whole file is kept."""
        try:
            return self.path(digest).exists()
        except ValueError:
            return False

    def path(self, digest: str) -> Path:
        """Return where the file is, or would be."""
        return self._blobs / digest_hex(digest)

    def size(self, digest: str) -> int:
        """Return the length of a kept file in bytes."""
        return self.path(digest).stat().st_size

    def open(self, digest: str) -> "Writer":
        """Start to take in a file.

        Raises:
            Refusal: 400, not a digest.
        """
        try:
            return Writer(self.path(digest), digest)
        except ValueError as error:
            raise Refusal(400, f"digest: {error}") from None

    def keep(self, digest: str, data: bytes) -> None:
        """Take in a small file at once.

        Raises:
            Refusal: 400, the bytes have another digest.
        """
        writer = self.open(digest)
        writer.write(data)
        writer.finish()

    def offer(self, digest: str) -> Offer:
        """Return how a kept file travels; the first time this compresses it, which takes a while.

        Raises:
            OSError: the file is not kept, or the disk refuses.
        """
        with self._building:
            if digest not in self._offers:
                self._offers[digest] = self._read_offer(digest) or self._build(digest)
            return self._offers[digest]

    def read_chunk(self, offer: Offer, part: FramePart, number: int) -> bytes:
        """Return the payload of one frame.

        Raises:
            OSError: the file is gone, or shorter than it was.
        """
        if part == "index":
            path = self._beside(offer.file, "index")
        elif offer.encoding == "zstd":
            path = self._beside(offer.file, "zst")
        else:
            path = self.path(offer.file)
        length = offer.chunk_length(part, number)
        with self._reading:
            data = os.pread(self._file(path).fileno(), length, number * offer.chunk_bytes)
        if len(data) != length:
            raise OSError(f"{path}: expected {length} bytes of chunk {number}, got {len(data)}")
        return data

    def close(self) -> None:
        """Close all open files."""
        with self._reading:
            while self._open:
                self._open.popitem()[1].close()

    def _file(self, path: Path) -> BinaryIO:
        file = self._open.pop(path, None) or path.open("rb")
        self._open[path] = file
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def _beside(self, digest: str, suffix: str) -> Path:
        return self._transfers / f"{digest_hex(digest)}.{suffix}"

    def _read_offer(self, digest: str) -> Offer | None:
        try:
            return Offer.model_validate_json(self._beside(digest, "json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _build(self, digest: str) -> Offer:
        source = self.path(digest)
        size = source.stat().st_size
        packed = self._beside(digest, "zst")
        with _new_file(packed) as file:
            with source.open("rb") as plain:
                zstandard.ZstdCompressor(level=ZSTD_LEVEL).copy_stream(plain, file, size=size)
            worth = file.tell() <= WORTH_IT * size
            if worth:
                _settle(file, packed)
            else:
                Path(file.name).unlink()
        transfer, length, index = _hash_chunks(packed if worth else source, self._chunk_bytes)
        offer = Offer(
            file=digest,
            file_bytes=size,
            encoding="zstd" if worth else "identity",
            transfer=transfer,
            transfer_bytes=length,
            index="sha256:" + hashlib.sha256(index).hexdigest(),
            chunk_bytes=self._chunk_bytes,
        )
        for suffix, data in (("index", index), ("json", offer.model_dump_json().encode())):
            target = self._beside(digest, suffix)
            with _new_file(target) as file:
                file.write(data)
                _settle(file, target)
        return offer


class Writer:
    """Takes in one file; nothing is kept unless its digest is the one promised."""

    def __init__(self, target: Path, digest: str) -> None:
        self._target = target
        self._digest = digest
        self._hash = hashlib.sha256()
        self._size = 0
        self._file = _new_file(target)

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            OSError: the disk refuses.
        """
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def finish(self) -> int:
        """Keep the file and return its size in bytes.

        Raises:
            Refusal: 400, the bytes have another digest; nothing is kept.
            OSError: the disk refuses; nothing is kept after `abort`.
        """
        got = "sha256:" + self._hash.hexdigest()
        if got != self._digest:
            self.abort()
            raise Refusal(
                400, f"expected {self._digest}, got {got} ({self._size} bytes)", "send it again"
            )
        _settle(self._file, self._target)
        self._file.close()
        return self._size

    def abort(self) -> None:
        """Throw the bytes away; harmless after `finish`."""
        with suppress(OSError):
            self._file.close()
        Path(self._file.name).unlink(missing_ok=True)


def _new_file(target: Path) -> "tempfile._TemporaryFileWrapper[bytes]":
    return tempfile.NamedTemporaryFile(dir=target.parent, prefix="tmp", delete=False)


def _settle(file: "tempfile._TemporaryFileWrapper[bytes]", target: Path) -> None:
    """Make the bytes and then the name survive a power cut."""
    file.flush()
    os.fsync(file.fileno())
    Path(file.name).replace(target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _hash_chunks(path: Path, chunk_bytes: int) -> tuple[str, int, bytes]:
    """Return digest and length of a file, and the hashes of its chunks one after the other."""
    whole = hashlib.sha256()
    hashes = []
    length = 0
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            whole.update(chunk)
            hashes.append(chunk_hash(chunk))
            length += len(chunk)
    return "sha256:" + whole.hexdigest(), length, b"".join(hashes)
