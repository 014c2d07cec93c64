"""The FlatBuffers reader follows no offset that it has not checked."""

import struct

import pytest

from fleet.workshop.flatbuffer import BrokenBufferError, Buffer

ONE_FIELD = struct.pack("<HHH", 6, 8, 4)
"""A list of fields: 6 bytes long, for tables of 8 bytes whose slot 0 is at byte 4."""


def table(vtable_distance, field):
    return struct.pack("<iI", vtable_distance, field)


def test_a_number_and_a_text_are_read_where_the_slots_say():
    content = (
        struct.pack("<I", 12) + ONE_FIELD + b"\0\0" + table(8, 4) + struct.pack("<I", 2) + b"hi\0"
    )

    root = Buffer(content).root()

    assert root.number(0, "I") == 4
    assert root.text(0) == "hi"


def test_absent_fields_have_their_defaults():
    root = Buffer(struct.pack("<IHHi", 8, 4, 4, 4)).root()

    assert root.number(3, "i", default=7) == 7
    assert root.text(3) == ""
    assert root.table(3) is None
    assert root.tables(3) == []
    assert root.numbers(3, "i") == ()
    assert root.count(3, 1) == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<I", 100),
        struct.pack("<Ii", 4, 100),
        struct.pack("<Ii", 4, -100),
        struct.pack("<IHHi", 8, 3, 4, 4),
        struct.pack("<IHHi", 8, 4, 2, 4),
        struct.pack("<IHHi", 8, 4, 100, 4),
        struct.pack("<IHHHHi", 12, 6, 4, 90, 0, 8),
    ],
    ids=["empty", "root", "fields after", "fields before", "odd", "small", "large", "field"],
)
def test_what_leads_outside_is_refused(content):
    with pytest.raises(BrokenBufferError):
        Buffer(content).root()


@pytest.mark.parametrize("tail", [b"hi", b"hi!", b"\xff\xfe\0"], ids=["cut", "open", "not UTF-8"])
def test_texts_are_closed_and_utf8(tail):
    content = struct.pack("<I", 12) + ONE_FIELD + b"\0\0" + table(8, 4)
    content += struct.pack("<I", 2) + tail

    with pytest.raises(BrokenBufferError):
        Buffer(content).root().text(0)


def test_a_small_file_that_looks_endless_is_refused_soon():
    """Two thousand offsets to one table, with two thousand offsets to another: four million."""
    count = 2000

    def offsets(target, start):
        return struct.pack(
            f"<I{count}I", count, *(target - start - 4 * n - 4 for n in range(count))
        )

    size = 4 + 4 * count
    first, inner, second, last = 20, 20 + size, 20 + size + 8, 20 + size + 8 + size
    content = (
        struct.pack("<I", 12) + ONE_FIELD + b"\0\0" + table(8, first - 16)
        + offsets(inner, first) + table(inner - 4, second - inner - 4)
        + offsets(last, second) + table(last - 4, 0)
    )  # fmt: skip
    root = Buffer(content).root()

    with pytest.raises(BrokenBufferError, match="more in it than a file of this size"):
        [each.tables(0) for each in root.tables(0)]
