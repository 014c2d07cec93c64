"""Seeded noise at everything a device believes of a transfer: frames, indexes, offers, requests."""

import json
import random
from typing import Any

import pytest

from agent.core.download import ChunkVerified, Download, IndexVerified
from tests.agent.core.world import CHUNK, index_of, offer_of
from wire.codec import DecodeError, decode, encode
from wire.transfer import (
    HASH_BYTES,
    MAX_CHUNKS,
    MAX_WINDOW_CHUNKS,
    ChunkFrame,
    FetchRequest,
    FramePart,
    Offer,
)
from wire.twin import Desired, DesiredRelease

BODY = random.Random(0).randbytes(60 * CHUNK + 17)
OFFER = offer_of(BODY)
INDEX = index_of(BODY)
SEEDS = range(5)
VALUES: tuple[Any, ...] = (
    *(sign * (2**power + more) for sign in (1, -1) for power in (0, 31, 43, 53, 63, 64, 200)
      for more in (-1, 0, 1)),
    0.5, 1e308, True, None, "", "x" * 5000, "sha256:" + "0" * 64, "sha256:" + "g" * 64,
    "../../etc/passwd", "identity", "zstd", "delta", [], {}, [[]], {"a": {}},
)  # fmt: skip


def damaged(dice: random.Random, data: bytes) -> bytes:
    """Cut, extend, flip, splice or replace some bytes."""
    match dice.randrange(6):
        case 0:
            return data[: dice.randrange(len(data) + 1)]
        case 1:
            return data + dice.randbytes(dice.randrange(1, 3 * CHUNK))
        case 2:
            place = dice.randrange(len(data))
            return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
        case 3:
            return dice.randbytes(dice.randrange(2 * CHUNK))
        case 4:
            place = dice.randrange(8)
            return data[:place] + dice.randbytes(8 - place) + data[8:]
    return data


def any_frame(dice: random.Random) -> bytes:
    """Return a right frame of a random place, a damaged one, or one of another place."""
    part: FramePart = dice.choice(("index", "data"))
    source = INDEX if part == "index" else BODY
    number = dice.randrange(-(-len(source) // CHUNK))
    payload = source[number * CHUNK : (number + 1) * CHUNK]
    if dice.random() < 0.1:
        number = dice.choice((0, 1, MAX_CHUNKS, 2**32 - 1))
    body = ChunkFrame(part, number, payload).encode()
    return damaged(dice, body) if dice.random() < 0.5 else body


@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_are_a_frame_or_refused_and_nothing_in_between(seed: int) -> None:
    dice = random.Random(seed)
    accepted = 0

    for _ in range(3000):
        body = any_frame(dice)
        try:
            frame = ChunkFrame.decode(body)
        except DecodeError:
            continue
        accepted += 1
        assert frame.encode() == body

    assert 0 < accepted < 3000


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_comes_only_the_truth_is_written_and_the_download_ends(seed: int) -> None:
    dice = random.Random(seed)
    download = Download(OFFER, 16, "seed")
    download.open(b"", frozenset(), 0.0)
    disk = bytearray(len(BODY))
    written: set[int] = set()
    index = b""

    def take(body: bytes, now: float) -> None:
        nonlocal index
        try:
            frame = ChunkFrame.decode(body)
        except DecodeError as error:
            download.reject(str(error), now)
            return
        for event in download.receive(frame, now):
            if isinstance(event, IndexVerified):
                index = event.index
            elif isinstance(event, ChunkVerified):
                assert event.offset not in written, "a chunk is written once"
                written.add(event.offset)
                disk[event.offset : event.offset + len(event.payload)] = event.payload

    now = 0.0
    for _ in range(3000):
        now += dice.random() * 0.1
        take(any_frame(dice), now)
        for request in download.requests_due(now):
            assert len(request.numbers()) <= 16
    while not download.complete:
        now = max(now, download.next_due() or now)
        assert now < 4000
        for request in download.requests_due(now):
            source = INDEX if request.part == "index" else BODY
            for number in request.numbers():
                payload = source[number * CHUNK : (number + 1) * CHUNK]
                take(ChunkFrame(request.part, number, payload).encode(), now)
        now += 0.01

    assert bytes(disk) == BODY
    assert index == INDEX
    assert download.bad > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_forged_index_is_never_verified(seed: int) -> None:
    dice = random.Random(seed)
    download = Download(OFFER, 16, "seed")
    download.open(b"", frozenset(), 0.0)
    frames = -(-len(INDEX) // CHUNK)

    for now in range(300):
        forged = bytearray(INDEX)
        place = dice.randrange(len(forged))
        forged[place] ^= 1 << dice.randrange(8)
        for number in dice.sample(range(frames), frames):
            payload = bytes(forged[number * CHUNK : (number + 1) * CHUNK])
            for event in download.receive(ChunkFrame("index", number, payload), float(now)):
                assert not isinstance(event, IndexVerified)

    assert download.index == b""
    assert download.bad > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_an_offer_is_within_bounds_or_refused(seed: int) -> None:
    dice = random.Random(seed)
    release = DesiredRelease(
        model="digits", version=1, rollout="r-1", manifest=OFFER.file, offers=(OFFER,)
    )
    right = json.loads(encode(Desired(device="cam-1", revision=1, releases=(release,))))
    accepted = 0

    for _ in range(2000):
        document = json.loads(json.dumps(right))
        offer = document["releases"][0]["offers"][0]
        for _ in range(dice.randrange(1, 4)):
            name = dice.choice(sorted(Offer.model_fields))
            offer[name] = dice.choice(VALUES)
            if dice.random() < 0.2:
                del offer[name]
        if dice.random() < 0.3:  # lengths that agree with each other
            offer["file_bytes"] = offer["transfer_bytes"] = dice.choice(VALUES)
        try:
            desired = decode(Desired, json.dumps(document).encode())
        except DecodeError:
            continue
        accepted += 1
        check_bounds(desired.releases[0].offers[0])

    assert 0 < accepted < 2000


def check_bounds(offer: Offer) -> None:
    assert 0 <= offer.transfer_bytes <= 2**43
    assert 0 <= offer.file_bytes <= 2**43
    assert offer.chunks <= MAX_CHUNKS
    assert offer.index_bytes <= MAX_CHUNKS * HASH_BYTES
    download = Download(offer, 16, "seed")
    download.open(b"", frozenset(), 0.0)
    for request in download.requests_due(0.0):
        assert len(request.numbers()) <= 16
        assert request.numbers()[-1] < offer.part_chunks(request.part)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_names_a_window_at_most_or_is_refused(seed: int) -> None:
    dice = random.Random(seed)
    right = json.loads(encode(FetchRequest.of(OFFER.index, "data", range(10, 30))))

    for _ in range(2000):
        document = dict(right)
        name = dice.choice(sorted(document))
        document[name] = dice.choice((*VALUES, dice.randbytes(12).decode("latin-1"), "////" * 4))
        try:
            numbers = decode(FetchRequest, json.dumps(document).encode()).numbers()
        except DecodeError:
            continue
        assert len(numbers) <= MAX_WINDOW_CHUNKS
        assert all(0 <= number < MAX_CHUNKS + MAX_WINDOW_CHUNKS for number in numbers)
