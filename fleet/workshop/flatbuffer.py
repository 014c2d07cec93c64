"""A FlatBuffers reader that checks every offset before it follows it.

The flatbuffers package trusts its input: a cut file gives struct.error at best, and at worst
silence, since Python reads a negative offset from the end.
"""

import struct
from typing import Any

Code = str
"""A struct format character: b, B, H, i, I, q, Q or f."""


class BrokenBufferError(ValueError):
    """An offset, a length or a text leads outside of the file or makes no sense."""


class Buffer:
    """The bytes of one file, and how much may still be read from them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        # Offsets can make a small file look endless, by leading to the same bytes again and
        # again: an honest file repeats little more than its lists of fields.
        self._reads_left = 1000 + 4 * len(data)

    def root(self) -> "Table":
        """Return the first table."""
        return self.table(self.follow(0))

    def table(self, position: int) -> "Table":
        """Return the table at `position`."""
        self._spend(1)
        return Table(self, position)

    def _spend(self, reads: int) -> None:
        self._reads_left -= reads
        if self._reads_left < 0:
            raise BrokenBufferError("more in it than a file of this size can hold")

    def require(self, position: int, size: int) -> None:
        """Refuse bytes that are not there."""
        if position < 0 or position + size > len(self._data):
            raise BrokenBufferError(
                f"bytes {position} to {position + size} of {len(self._data)} wanted"
            )

    def number(self, code: Code, position: int) -> Any:
        """Return the scalar at `position`."""
        self.require(position, struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self._data, position)[0]

    def numbers(self, code: Code, count: int, position: int) -> tuple[Any, ...]:
        """Return `count` scalars."""
        self.require(position, count * struct.calcsize(f"<{code}"))
        self._spend(count)
        return struct.unpack_from(f"<{count}{code}", self._data, position)

    def follow(self, position: int) -> int:
        """Return where the offset at `position` leads."""
        return position + int(self.number("I", position))

    def vector(self, position: int, width: int) -> tuple[int, int]:
        """Return the start and the count of the vector at `position`, all of it there."""
        count = int(self.number("I", position))
        self.require(position + 4, count * width)
        return position + 4, count

    def text(self, position: int) -> str:
        """Return the text at `position`, closed by a zero byte."""
        start, count = self.vector(position, 1)
        if self.number("B", start + count) != 0:
            raise BrokenBufferError(f"text at {position} is not closed")
        try:
            return self._data[start : start + count].decode()
        except UnicodeDecodeError as error:
            raise BrokenBufferError(f"text at {position} is not UTF-8") from error


class Table:
    """One table: fields by slot number, in the order of the schema."""

    def __init__(self, buffer: Buffer, position: int) -> None:
        self._buffer = buffer
        self._position = position
        vtable = position - int(buffer.number("i", position))
        length, size = buffer.numbers("H", 2, vtable)
        if length < 4 or length % 2 or size < 4:
            raise BrokenBufferError(f"table at {position} has no sound list of fields")
        buffer.require(position, size)
        self._fields = buffer.numbers("H", (length - 4) // 2, vtable + 4)
        if any(field >= size for field in self._fields):
            raise BrokenBufferError(f"table at {position} has a field outside of itself")

    def _at(self, slot: int) -> int | None:
        field = self._fields[slot] if slot < len(self._fields) else 0
        return self._position + int(field) if field else None

    def number(self, slot: int, code: Code, default: int = 0) -> int:
        """Return an integer field."""
        at = self._at(slot)
        return default if at is None else int(self._buffer.number(code, at))

    def text(self, slot: int) -> str:
        """Return a text field, empty when absent."""
        at = self._at(slot)
        return "" if at is None else self._buffer.text(self._buffer.follow(at))

    def table(self, slot: int) -> "Table | None":
        """Return a table field."""
        at = self._at(slot)
        return None if at is None else self._buffer.table(self._buffer.follow(at))

    def tables(self, slot: int) -> list["Table"]:
        """Return a field that is a vector of tables."""
        at = self._at(slot)
        if at is None:
            return []
        start, count = self._buffer.vector(self._buffer.follow(at), 4)
        return [
            self._buffer.table(self._buffer.follow(start + 4 * place)) for place in range(count)
        ]

    def numbers(self, slot: int, code: Code) -> tuple[Any, ...]:
        """Return a field that is a vector of scalars."""
        at = self._at(slot)
        if at is None:
            return ()
        start, count = self._buffer.vector(self._buffer.follow(at), struct.calcsize(f"<{code}"))
        return self._buffer.numbers(code, count, start)

    def count(self, slot: int, width: int) -> int:
        """Return how many elements of `width` bytes a vector field has, all of them there."""
        at = self._at(slot)
        return 0 if at is None else self._buffer.vector(self._buffer.follow(at), width)[1]
