"""Frames are cut alike however the bytes come in."""

import io
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from agent.pipelines import frames
from agent.pipelines.frames import CutError, cutter


def feed(kind: str | int, parts: Iterable[bytes]) -> list[bytes]:
    cut = cutter(kind)
    return [frame for part in parts for frame in cut.feed(part)] + cut.end()


def parts_of(data: bytes, seed: int) -> list[bytes]:
    shuffled = random.Random(seed)
    places = sorted(shuffled.randrange(len(data) + 1) for _ in range(shuffled.randrange(12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def segment(code: int, body: bytes) -> bytes:
    return bytes([0xFF, code]) + (len(body) + 2).to_bytes(2, "big") + body


def jpeg(coefficients: bytes, *, thumbnail: bytes = b"", scans: int = 1) -> bytes:
    """The skeleton of a JPEG; a thumbnail is one within its head."""
    scan = segment(0xDA, b"\1\1\0\0\x3f\0") + coefficients.replace(b"\xff", b"\xff\0") + b"\xff\xd3"
    head = segment(0xE1, b"Exif\0\0" + thumbnail) + segment(0xDB, bytes(range(65)))
    tables = segment(0xC4, b"\xff\xd9" * 8) + b"\xff"  # and a fill byte, which is allowed
    return b"\xff\xd8" + head + (scan + tables) * scans + b"\xff\xd9"


PICTURES = st.builds(
    jpeg,
    st.binary(max_size=200),
    thumbnail=st.one_of(st.just(b""), st.builds(jpeg, st.binary(max_size=40))),
    scans=st.integers(1, 3),
)
NOISE = st.binary(max_size=30).map(lambda noise: noise.replace(b"\xff", b"x"))


@given(st.lists(st.tuples(NOISE, PICTURES), max_size=5), st.integers())
def test_images_are_found_whole_in_whatever_is_between_them(
    stream: list[tuple[bytes, bytes]], seed: int
) -> None:
    data = b"".join(noise + picture for noise, picture in stream)

    assert feed("jpeg", parts_of(data, seed)) == [picture for _, picture in stream]


@given(PICTURES, PICTURES, st.integers(), st.integers(0, 10_000))
def test_after_an_image_that_was_cut_short_images_are_found_again(
    cut: bytes, whole: bytes, seed: int, at: int
) -> None:
    # What is left of it may announce a segment of 64 KiB at most, which swallows what follows.
    stream = [cut[: at % len(cut)], *[whole] * (65536 // len(whole) + 2)]

    assert feed("jpeg", parts_of(b"".join(stream), seed))[-1] == whole


@pytest.mark.parametrize("progressive", [False, True])
def test_real_pictures_with_real_thumbnails_are_cut(progressive: bool) -> None:
    pictures = []
    for seed in range(3):
        noise = Image.frombytes("RGB", (64, 48), random.Random(seed).randbytes(64 * 48 * 3))
        small, large = io.BytesIO(), io.BytesIO()
        noise.resize((16, 12)).save(small, "JPEG")
        noise.save(large, "JPEG", exif=b"Exif\0\0" + small.getvalue(), progressive=progressive)
        pictures.append(large.getvalue())

    assert feed("jpeg", parts_of(b"".join(pictures), 1)) == pictures


@given(st.lists(st.binary(max_size=50)), st.integers())
def test_frames_with_their_length_come_out_as_they_went_in(sent: list[bytes], seed: int) -> None:
    data = b"".join(len(each).to_bytes(4, "big") + each for each in sent)

    assert feed("length", parts_of(data, seed)) == sent


@given(st.lists(st.binary(min_size=7, max_size=7)), st.binary(max_size=6), st.integers())
def test_frames_of_a_size_come_out_and_a_rest_does_not(
    sent: list[bytes], rest: bytes, seed: int
) -> None:
    assert feed(7, parts_of(b"".join(sent) + rest, seed)) == sent


LINE = st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"").rstrip(b"\r"))


@given(st.lists(LINE), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers())
def test_lines_come_out_and_empty_ones_do_not(
    lines: list[bytes], end: bytes, ended: bool, seed: int
) -> None:
    data = end.join(lines) + (end if ended else b"")

    assert feed("lines", parts_of(data, seed)) == [line for line in lines if line]


@given(st.sampled_from(["jpeg", "lines", "length", 3]), st.lists(st.binary(max_size=60)))
def test_no_bytes_whatever_break_a_cutter(kind: str | int, parts: list[bytes]) -> None:
    try:
        found = feed(kind, parts)
    except CutError:
        assert kind == "length"
    else:
        assert sum(map(len, found)) <= sum(map(len, parts))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("length", b"\xff\xff\xff\xff"),
        ("lines", b"x" * 1001),
        ("jpeg", b"\xff\xd8\xff\xda\0\2" + b"x" * 1000),
    ],
)
def test_a_frame_without_end_is_not_collected(
    monkeypatch: pytest.MonkeyPatch, kind: str, data: bytes
) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1000)

    with pytest.raises(CutError, match="1000 bytes, got"):
        cutter(kind).feed(data)
