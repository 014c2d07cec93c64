import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wire.codec import DecodeError, decode, encode
from wire.ids import digest_of
from wire.transfer import (
    FRAME_OVERHEAD,
    HASH_BYTES,
    MAX_CHUNKS,
    MAX_WINDOW_CHUNKS,
    ChunkFrame,
    FetchRequest,
    FramePart,
    Offer,
    chunk_hash,
)

TRANSFER = digest_of(b"transfer")
PARTS = st.sampled_from(["index", "data"])
FRAMES = st.builds(
    ChunkFrame,
    PARTS,
    st.integers(0, 2**32 - 1),
    st.binary(max_size=64),
    st.booleans(),
    st.booleans(),
)


def offer_of(data: bytes, chunk_bytes: int) -> Offer:
    chunks = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    return Offer(
        file=digest_of(data), file_bytes=len(data), transfer=digest_of(data),
        transfer_bytes=len(data), index=digest_of(b"".join(map(chunk_hash, chunks))),
        chunk_bytes=chunk_bytes,
    )  # fmt: skip


@given(FRAMES)
def test_a_frame_reads_as_it_was_written_and_costs_eight_bytes(frame):
    data = frame.encode()

    assert ChunkFrame.decode(data) == frame
    assert len(data) == FRAME_OVERHEAD + len(frame.payload)


def test_a_frame_is_these_very_bytes():
    assert ChunkFrame("data", 258, b"xyz").encode() == b"Ff\x01\x02\x00\x00\x01\x02xyz"
    assert ChunkFrame("index", 0, b"").encode() == b"Ff\x01\x01\x00\x00\x00\x00"
    marked = ChunkFrame("data", 1, b"", crowded=True, followed=True).encode()
    assert marked == b"Ff\x01\xc2\x00\x00\x00\x01"


@given(st.binary(max_size=24) | FRAMES.map(ChunkFrame.encode).map(lambda f: f[:FRAME_OVERHEAD]))
def test_a_frame_that_is_none_is_a_decode_error_and_nothing_else(data):
    try:
        frame = ChunkFrame.decode(data)
    except DecodeError:
        assert len(data) < 8 or data[:3] != b"Ff\x01" or data[3] & 0x3F not in (1, 2)
    else:
        assert frame.encode() == data


@given(PARTS, st.integers(0, MAX_CHUNKS - 1), st.sets(st.integers(0, MAX_WINDOW_CHUNKS - 1)))
def test_a_request_asks_for_the_very_frames_it_was_made_of(part, first, offsets):
    wanted = {first} | {first + offset for offset in offsets}

    request = FetchRequest.of(TRANSFER, part, wanted)

    assert decode(FetchRequest, encode(request)).numbers() == sorted(wanted)


def test_a_bitmap_counts_from_the_least_significant_bit():
    request = FetchRequest.of(TRANSFER, "data", [1_000, 1_001, 1_009])

    assert (request.first, base64.b64decode(request.bitmap)) == (1_000, b"\x03\x02")


@given(st.text(max_size=16))
def test_a_bitmap_from_a_stranger_asks_for_a_window_at_most(bitmap):
    request = FetchRequest(index=TRANSFER, part="data", first=5, bitmap=bitmap)

    try:
        numbers = request.numbers()
    except DecodeError:
        return
    assert len(numbers) <= MAX_WINDOW_CHUNKS
    assert all(5 <= number < 5 + MAX_WINDOW_CHUNKS for number in numbers)


def test_a_bitmap_of_more_than_a_window_is_refused():
    with pytest.raises(DecodeError, match="bitmap"):
        FetchRequest(
            index=TRANSFER, part="data", first=0, bitmap=base64.b64encode(b"\xff" * 9).decode()
        ).numbers()
    with pytest.raises(ValidationError):
        FetchRequest.of(TRANSFER, "data", [0, 1_000])


@given(st.binary(max_size=9_000), st.sampled_from([1024, 1500, 4096]), PARTS)
def test_the_frames_of_an_offer_hold_every_byte_once(data, chunk_bytes, part: FramePart):
    offer = offer_of(data, chunk_bytes)
    index = b"".join(chunk_hash(data[at : at + chunk_bytes])
                     for at in range(0, len(data), chunk_bytes))  # fmt: skip
    whole = index if part == "index" else data

    lengths = [offer.chunk_length(part, number) for number in range(offer.part_chunks(part))]

    assert sum(lengths) == len(whole) == offer.part_bytes(part)
    assert all(0 < length <= chunk_bytes for length in lengths)
    assert offer.index_bytes == HASH_BYTES * offer.chunks


def test_an_index_holds_plain_sha256_hashes():
    assert chunk_hash(b"abc") == hashlib.sha256(b"abc").digest()


def test_an_offer_of_more_chunks_than_an_index_may_hold_is_refused():
    with pytest.raises(ValidationError, match="at most"):
        Offer(file=TRANSFER, file_bytes=2**43, encoding="zstd", transfer=TRANSFER,
              transfer_bytes=MAX_CHUNKS * 1024 + 1, index=TRANSFER, chunk_bytes=1024)  # fmt: skip


def test_an_uncompressed_offer_sends_the_file_itself():
    honest = offer_of(b"model", 1024).model_dump()

    with pytest.raises(ValidationError, match="the transfer must be the file"):
        Offer(**(honest | {"transfer": digest_of(b"other")}))
