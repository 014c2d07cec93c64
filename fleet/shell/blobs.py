"""Files by digest on the controller's disk, and the form in which they travel.

blobs/{hex}                  the file
transfers/{hex}.zst          its compressed form, where that pays
transfers/{hex}.{n}.index    the hashes of the chunks of what travels, cut into n bytes
transfers/{hex}.json         the Offers; written last, so that it vouches for the others
transfers/{hex}-{base}.delta what makes the file of another, with its own .index and .json
"""

import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import zstandard
from pydantic import TypeAdapter, ValidationError

from fleet.core.views import Refusal
from wire.ids import digest_hex, digest_of
from wire.transfer import MAX_CHUNKS, Encoding, FramePart, Offer, chunk_hash

ZSTD_LEVEL = 10
WORTH_IT = 0.97
"""A compressed form longer than this share of the file costs devices more than it saves."""

OPEN_FILES = 16
MAX_DELTA_BYTES = 4 * 1024 * 1024
"""Of the file and of its base: the encoder takes up to seven seconds a megabyte."""

CHUNK_BYTES = 120 * 1024
"""As fast as any on a LAN, and with its frame and topic under 128 KiB, where AWS cuts off."""
MAX_CHUNK_BYTES = 256 * 1024
SMALLER_CHUNKS = (64 * 1024, 16 * 1024, 4 * 1024)
"""For devices that cannot take the usual ones, such as those behind a broker of small messages."""

_OFFERS = TypeAdapter(tuple[Offer, ...])
_SUFFIXES = {"zstd": "zst", "delta": "delta"}


class Blobs:
    """A directory of files by digest. Safe to use from many threads."""

    def __init__(self, directory: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Open or create the store, and delete what a crash left half written.

        Files taken in from now on travel in chunks of `chunk_bytes`, or of SMALLER_CHUNKS;
        earlier offers stand.
        """
        self._sizes = (chunk_bytes, *(size for size in SMALLER_CHUNKS if size < chunk_bytes))
        self._blobs = directory / "blobs"
        self._transfers = directory / "transfers"
        for each in (self._blobs, self._transfers):
            each.mkdir(parents=True, exist_ok=True)
            for partial in each.glob("tmp*"):
                partial.unlink(missing_ok=True)
        self._offers: dict[str, tuple[Offer, ...]] = {}
        self._building = threading.Lock()
        self._encoding = threading.Lock()
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

    def offers(self, digest: str) -> tuple[Offer, ...]:
        """Return the ways in which a kept file travels, the one in the largest chunks first.

        The first time this compresses the file, which takes a while.

        Raises:
            OSError: the file is not kept, or the disk refuses.
        """
        with self._building:
            if digest not in self._offers:
                self._offers[digest] = self._read_offers(_stem(digest)) or self._build(digest)
            return self._offers[digest]

    def read_chunk(self, offer: Offer, part: FramePart, number: int) -> bytes:
        """Return the payload of one frame.

        Raises:
            OSError: the file is gone, or shorter than it was.
        """
        stem = _stem(offer.file, offer.base)
        if part == "index":
            path = self._transfers / f"{stem}.{offer.chunk_bytes}.index"
        elif offer.encoding == "identity":
            path = self.path(offer.file)
        else:
            path = self._transfers / f"{stem}.{_SUFFIXES[offer.encoding]}"
        length = offer.chunk_length(part, number)
        with self._reading:
            data = os.pread(self._file(path).fileno(), length, number * offer.chunk_bytes)
        if len(data) != length:
            raise OSError(f"{path}: expected {length} bytes of chunk {number}, got {len(data)}")
        return data

    def read_all(self, offer: Offer) -> Iterator[bytes]:
        """Yield the whole transfer, a chunk at a time.

        Raises:
            OSError: the file is gone, or shorter than it was.
        """
        for number in range(offer.chunks):
            yield self.read_chunk(offer, "data", number)

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

    def deltas(self) -> dict[tuple[str, str], tuple[Offer, ...]]:
        """Return the deltas that were made, by base and file."""
        found = {}
        for path in self._transfers.glob("*-*.json"):
            offers = self._read_offers(path.stem) or ()
            if offers and offers[0].base is not None:
                found[offers[0].base, offers[0].file] = offers
        return found

    def delta(self, base: str, file: str) -> tuple[Offer, ...]:
        """Return the ways in which `file` travels to who has `base`; none where it does not pay.

        The first time this takes up to half a minute.

        Raises:
            OSError: one of the two is not kept, or the disk refuses.
        """
        stem = _stem(file, base)
        with self._encoding:
            made = self._read_offers(stem)
            return made if made is not None else self._build_delta(base, file, stem)

    def _build_delta(self, base: str, file: str, stem: str) -> tuple[Offer, ...]:
        from delta.encode import encode  # numpy, only where a delta is made

        delta = None
        if max(self.size(base), self.size(file)) <= MAX_DELTA_BYTES:
            delta = encode(self.path(base).read_bytes(), self.path(file).read_bytes())
        plain = self._offers[file][0] if file in self._offers else None
        if delta is None or (plain is not None and len(delta) > WORTH_IT * plain.transfer_bytes):
            self._keep(f"{stem}.json", _OFFERS.dump_json(()))
            return ()
        self._keep(f"{stem}.delta", delta)
        return self._cut(self._transfers / f"{stem}.delta", file, "delta", base)

    def _read_offers(self, stem: str) -> tuple[Offer, ...] | None:
        try:
            return _OFFERS.validate_json((self._transfers / f"{stem}.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _build(self, digest: str) -> tuple[Offer, ...]:
        source = self.path(digest)
        size = source.stat().st_size
        packed = self._transfers / f"{_stem(digest)}.zst"
        with _new_file(packed) as file:
            with source.open("rb") as plain:
                zstandard.ZstdCompressor(level=ZSTD_LEVEL).copy_stream(plain, file, size=size)
            worth = file.tell() <= WORTH_IT * size
            if worth:
                _settle(file, packed)
            else:
                Path(file.name).unlink()
        if worth:
            return self._cut(packed, digest, "zstd")
        return self._cut(source, digest, "identity")

    def _cut(
        self, travels: Path, file: str, encoding: Encoding, base: str | None = None
    ) -> tuple[Offer, ...]:
        """Make and keep the indexes and the offers of what travels in the place of `file`."""
        length = travels.stat().st_size
        sizes = [each for each in self._sizes if length <= MAX_CHUNKS * each]
        transfer, indexes = _hash_chunks(travels, sizes or list(self._sizes[:1]))
        offers = tuple(
            Offer(
                file=file,
                file_bytes=self.size(file),
                encoding=encoding,
                base=base,
                transfer=transfer,
                transfer_bytes=length,
                index=digest_of(index),
                chunk_bytes=chunk_bytes,
            )
            for chunk_bytes, index in indexes.items()
        )
        stem = _stem(file, base)
        for chunk_bytes, index in indexes.items():
            self._keep(f"{stem}.{chunk_bytes}.index", index)
        self._keep(f"{stem}.json", _OFFERS.dump_json(offers))
        return offers

    def _keep(self, name: str, data: bytes) -> None:
        target = self._transfers / name
        with _new_file(target) as file:
            file.write(data)
            _settle(file, target)


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


def _stem(file: str, base: str | None = None) -> str:
    """Return how the names begin of what lies under transfers/ for a file."""
    return digest_hex(file) if base is None else f"{digest_hex(file)}-{digest_hex(base)[:16]}"


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


def _hash_chunks(path: Path, sizes: list[int]) -> tuple[str, dict[int, bytes]]:
    """Return the digest of a file and, for each size, the hashes of its chunks in a row."""
    indexes = {}
    for size in sizes:
        hashes = bytearray()
        with path.open("rb") as file:
            while chunk := file.read(size):
                hashes += chunk_hash(chunk)
        indexes[size] = bytes(hashes)
    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest()
    return f"sha256:{whole}", indexes
