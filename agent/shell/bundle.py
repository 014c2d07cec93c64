"""Reads a bundle: nothing of it is kept unless its seal and every byte are right.

What comes next is known before it is read, and what is read is bounded by what was sealed.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

import zstandard

from agent.errors import DeviceError
from wire.bundle import BLOCK_BYTES, END, SEAL_NAME, BundleSeal, header, member_name, padding
from wire.codec import MAX_DOCUMENT_BYTES, DecodeError
from wire.ids import digest_hex
from wire.seal import SealError, Verifier
from wire.transfer import Offer

PIECE_BYTES = 256 * 1024
MAX_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
"""As for transfers that come over the broker. A frame that wants more memory is refused."""

_NEXT = "nothing was imported; copy it again, or export it again with: fleet model export"


class BundleError(DeviceError):
    """A bundle that is not what its seal promises, or not sealed for this device."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"bundle: {detail}; {_NEXT}")


def read_seal(bundle: BinaryIO, verifier: Verifier, device: str) -> tuple[BundleSeal, bytes]:
    """Return the verified statement at the start of a bundle, and its very bytes.

    Raises:
        BundleError: not a bundle, not signed by a key that is trusted here, or for another device.
    """
    head = bundle.read(BLOCK_BYTES)
    try:
        size = tarfile.TarInfo.frombuf(head, "ascii", "strict").size
    except (tarfile.TarError, ValueError):
        size = -1
    if not 0 < size <= MAX_DOCUMENT_BYTES or head != header(SEAL_NAME, size):
        raise BundleError(f"expected a file made by fleet model export, got one with {head[:40]!r}")
    data = _read(bundle, size, SEAL_NAME)
    try:
        seal = verifier.open(BundleSeal, data)
    except (SealError, DecodeError) as error:
        raise BundleError(f"{SEAL_NAME}: {error}") from None
    if seal.device not in (None, device):
        raise BundleError(f"expected one for {device}, got one for {seal.device}")
    return seal, data


def unpack(bundle: BinaryIO, seal: BundleSeal, into: Path) -> None:
    """Write every file of the bundle into a directory, by the hex digits of its digest.

    All is on the disk when this returns; the directory is the caller's to throw away otherwise.

    Raises:
        BundleError: cut, damaged, or with anything in it that was not sealed.
        OSError: the disk refuses.
    """
    for offer in seal.release.offers:
        name = member_name(offer)
        if bundle.read(BLOCK_BYTES) != header(name, offer.transfer_bytes):
            raise BundleError(f"expected {name[:12]} of {offer.transfer_bytes} bytes, got another")
        _write(into / digest_hex(offer.file), _decoded(_verified(bundle, offer), offer), offer)
    if bundle.read(len(END) + 1) != END:
        raise BundleError("expected its end after the last file, got more or less")


def _read(bundle: BinaryIO, size: int, name: str) -> bytes:
    """Return the bytes of a small member."""
    data = bundle.read(size + len(padding(size)))
    if data[size:] != padding(size) or len(data) < size:
        raise BundleError(f"{name[:12]}: expected {size} bytes and zeros, got {len(data)}")
    return data[:size]


def _verified(bundle: BinaryIO, offer: Offer) -> Iterator[bytes]:
    """Yield the transfer as it lies in the bundle; complain once all was read and is wrong."""
    hasher = hashlib.sha256()
    left = offer.transfer_bytes
    while left:
        piece = bundle.read(min(left, PIECE_BYTES))
        if not piece:
            raise BundleError(
                f"{offer.transfer[:19]}: expected {offer.transfer_bytes} bytes, got "
                f"{offer.transfer_bytes - left}: the bundle is cut short"
            )
        left -= len(piece)
        hasher.update(piece)
        yield piece
    zeros = padding(offer.transfer_bytes)
    if f"sha256:{hasher.hexdigest()}" != offer.transfer or bundle.read(len(zeros)) != zeros:
        raise BundleError(f"{offer.transfer[:19]}: expected other bytes than those in the bundle")


def _decoded(pieces: Iterator[bytes], offer: Offer) -> Iterator[bytes]:
    if offer.encoding == "identity":
        yield from pieces
        return
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES).stream_reader(
        cast(IO[bytes], _Pieces(pieces))
    )
    try:
        while piece := reader.read(PIECE_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        raise BundleError(f"{offer.transfer[:19]}: expected zstd, got {error}") from None
    for _ in pieces:
        raise BundleError(f"{offer.transfer[:19]}: expected one zstd frame, got more")


class _Pieces:
    """A file to read from, made of pieces; each is at most as long as what is asked for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        data = self._rest or next(self._pieces, b"")
        self._rest = data[size:]
        return data[:size]


def _write(path: Path, pieces: Iterator[bytes], offer: Offer) -> None:
    hasher = hashlib.sha256()
    size = 0
    with path.open("xb", buffering=0) as file:
        for piece in pieces:
            size += len(piece)
            if size > offer.file_bytes:
                break
            hasher.update(piece)
            _write_all(file.fileno(), piece)
        os.fsync(file.fileno())
    if size != offer.file_bytes or f"sha256:{hasher.hexdigest()}" != offer.file:
        got = "more" if size > offer.file_bytes else f"{size} of sha256:{hasher.hexdigest()[:12]}"
        raise BundleError(
            f"{offer.file[:19]}: expected {offer.file_bytes} bytes of that digest, got {got}"
        )


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
