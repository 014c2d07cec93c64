"""How bytes travel: an offer, an index of chunk hashes, frames, and requests for what is missing.

The *file* is what a release names by digest. The *transfer* is what travels in its place: the
file itself, or the file compressed. Chunks cut the transfer; the index holds their hashes.
"""

import base64
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from wire.codec import DecodeError, Document, Part
from wire.ids import Digest
from wire.manifest import Size
from wire.schema import Field, model_validator

CHUNK_BYTES = 64 * 1024
"""What a document means that does not say how long chunks are, or may be."""

HASH_BYTES = 32
MAX_WINDOW_CHUNKS = 64
MAX_CHUNKS = 131_072
"""8 GiB of 64 KiB chunks; an index of 4 MiB."""

MAGIC = b"Ff"
FRAME_VERSION = 1
_HEADER = struct.Struct(">2sBBI")
FRAME_OVERHEAD = _HEADER.size

FramePart = Literal["index", "data"]
Encoding = Literal["identity", "zstd", "delta"]
_PARTS: dict[int, FramePart] = {1: "index", 2: "data"}
_CODES = {part: code for code, part in _PARTS.items()}
_CROWDED = 0x80
_FOLLOWED = 0x40


class Offer(Part):
    """What the controller will send for one file. Travels inside a sealed `Desired`."""

    file: Digest
    file_bytes: Size
    encoding: Encoding = "identity"
    base: Digest | None = None
    """With `delta`: the file that the device must hold to make this one of it."""
    transfer: Digest
    transfer_bytes: Size
    index: Digest
    chunk_bytes: Annotated[int, Field(ge=1024, le=1024 * 1024)] = CHUNK_BYTES

    @model_validator(mode="after")
    def _bounded(self) -> "Offer":
        if self.chunks > MAX_CHUNKS:
            raise ValueError(f"expected at most {MAX_CHUNKS} chunks, got {self.chunks}")
        if self.encoding == "identity" and (self.file, self.file_bytes) != (
            self.transfer,
            self.transfer_bytes,
        ):
            raise ValueError("identity encoding: the transfer must be the file")
        if (self.encoding == "delta") != (self.base is not None):
            raise ValueError("a base belongs to a delta, and to nothing else")
        return self

    @property
    def chunks(self) -> int:
        """How many data chunks the transfer has."""
        return -(-self.transfer_bytes // self.chunk_bytes)

    @property
    def disk_bytes(self) -> int:
        """What it takes on a disk at its worst: what travels lies beside what it becomes."""
        packed = self.transfer_bytes if self.encoding != "identity" else 0
        return self.file_bytes + packed

    @property
    def index_bytes(self) -> int:
        """How long the index is."""
        return self.chunks * HASH_BYTES

    def part_bytes(self, part: FramePart) -> int:
        """Return the length of the index or of the transfer."""
        return self.index_bytes if part == "index" else self.transfer_bytes

    def part_chunks(self, part: FramePart) -> int:
        """Return how many frames the index or the transfer takes."""
        return -(-self.part_bytes(part) // self.chunk_bytes)

    def chunk_length(self, part: FramePart, number: int) -> int:
        """Return the exact payload length of frame `number`, zero-based."""
        return min(self.chunk_bytes, self.part_bytes(part) - number * self.chunk_bytes)


class FetchRequest(Document):
    """A device names the frames it still misses, at most a window of them.

    `bitmap` is base64 over bytes whose bit i (least significant first) is frame `first` + i.
    """

    index: Digest
    """The offer's index digest: the name under which its frames travel."""
    part: FramePart
    first: Annotated[int, Field(ge=0, lt=MAX_CHUNKS)]
    bitmap: Annotated[str, Field(max_length=4 * (MAX_WINDOW_CHUNKS // 8 // 3 + 2))]
    own: bool = False
    """Answer on the device's own topic, since it does not listen to the shared one."""
    hold: bool | None = None
    """Nothing is asked for: what comes on the shared topic is more than this device can take."""

    @classmethod
    def of(
        cls, index: str, part: FramePart, numbers: Iterable[int], own: bool = False
    ) -> "FetchRequest":
        """Ask for `numbers`, of which the highest is less than a window above the lowest."""
        wanted = sorted(numbers)
        first = wanted[0]
        bits = bytearray((wanted[-1] - first) // 8 + 1)
        for number in wanted:
            bits[(number - first) // 8] |= 1 << ((number - first) % 8)
        bitmap = base64.b64encode(bits).decode()
        return cls(index=index, part=part, first=first, bitmap=bitmap, own=own)

    @classmethod
    def to_hold(cls, index: str) -> "FetchRequest":
        """Ask that those who follow be let catch up."""
        return cls(index=index, part="data", first=0, bitmap="", hold=True)

    def numbers(self) -> list[int]:
        """Return the frames asked for, ascending.

        Raises:
            DecodeError: the bitmap is not base64, or longer than a window.
        """
        try:
            bits = base64.b64decode(self.bitmap, validate=True)
        except ValueError as error:
            raise DecodeError(f"bitmap: expected base64, got {self.bitmap[:40]!r}") from error
        if 8 * len(bits) > MAX_WINDOW_CHUNKS:
            raise DecodeError(f"bitmap: expected {MAX_WINDOW_CHUNKS} bits, got {8 * len(bits)}")
        return [
            self.first + 8 * place + bit
            for place, byte in enumerate(bits)
            for bit in range(8)
            if byte >> bit & 1
        ]


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """One binary message: 8 bytes of header, then a chunk of the index or of the transfer.

    Header, big-endian: "Ff", version u8 = 1, part u8 (1 index, 2 data; 128 more when crowded, 64
    more when followed), number u32.
    The topic names the index: bytes and chunk size alike, so that transfers cut otherwise, for
    a broker or a device with another limit, never mix.
    """

    part: FramePart
    number: int
    payload: bytes
    crowded: bool = False
    """More than one device had asked for it: one of them asking on is enough."""
    followed: bool = False
    """More than one device fetches this just now, whoever asked."""

    def encode(self) -> bytes:
        """Return the frame as it travels."""
        code = _CODES[self.part] | _CROWDED * self.crowded | _FOLLOWED * self.followed
        header = _HEADER.pack(MAGIC, FRAME_VERSION, code, self.number)
        return header + self.payload

    @classmethod
    def decode(cls, data: bytes) -> "ChunkFrame":
        """Read a frame.

        Raises:
            DecodeError: too short, another magic, version or part.
        """
        if len(data) < FRAME_OVERHEAD:
            raise DecodeError(f"frame: expected at least {FRAME_OVERHEAD} bytes, got {len(data)}")
        magic, version, code, number = _HEADER.unpack_from(data)
        part = _PARTS.get(code & ~(_CROWDED | _FOLLOWED))
        if magic != MAGIC or version != FRAME_VERSION or part is None:
            raise DecodeError(f"frame: expected version 1 of {MAGIC!r}, got {data[:4]!r}")
        payload = data[FRAME_OVERHEAD:]
        return cls(part, number, payload, bool(code & _CROWDED), bool(code & _FOLLOWED))


def chunk_hash(payload: bytes) -> bytes:
    """Return the 32-byte SHA-256 that the index holds for a chunk."""
    return hashlib.sha256(payload).digest()
