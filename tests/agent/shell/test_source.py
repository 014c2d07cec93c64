"""Ranges over real HTTPS, from servers that are right, gone, slow, and up to no good."""

import os
import queue
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.events import Event, SourceFailed, SourceFrame
from agent.shell.source import TIMEOUT_S, Source
from tests.caches import Cache, certificate
from wire.ids import digest_of
from wire.transfer import Offer

DATA = os.urandom(150_000)
CHUNK = 16 * 1024
OFFER = Offer(
    file=digest_of(DATA),
    file_bytes=len(DATA),
    transfer=digest_of(DATA),
    transfer_bytes=len(DATA),
    index=digest_of(b"index"),
    chunk_bytes=CHUNK,
)


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def cache(trust: Path) -> Iterator[Cache]:
    with Cache({"abc": DATA}, trust) as cache:
        yield cache


class Desk:
    def __init__(self, ca_file: Path | None) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.source = Source(ca_file, self.events.put)

    def take(self, count: int, timeout_s: float = 12.0) -> list[Event]:
        return [self.events.get(timeout=timeout_s) for _ in range(count)]

    def failure(self) -> str:
        """Return what the source is said to have done wrong; frames before it are passed over."""
        while not isinstance(event := self.events.get(timeout=12), SourceFailed):
            pass
        return event.detail


@pytest.fixture
def desk(trust: Path) -> Iterator[Desk]:
    desk = Desk(trust)
    yield desk
    desk.source.close()


def url(cache: Cache) -> str:
    return f"{cache.url}/models/abc"


def frames(events: list[Event]) -> dict[int, bytes]:
    assert all(isinstance(event, SourceFrame) for event in events), events
    return {e.frame.number: e.frame.payload for e in events if isinstance(e, SourceFrame)}


def test_ranges_come_chunk_by_chunk_over_one_connection(desk: Desk, cache: Cache) -> None:
    desk.source.fetch(url(cache), OFFER, 0, 4)
    first = frames(desk.take(4))
    desk.source.fetch(url(cache), OFFER, 4, 6)
    rest = frames(desk.take(6))

    parts = first | rest
    assert b"".join(parts[n] for n in range(10)) == DATA
    assert cache.requests == [
        ("/models/abc", f"bytes=0-{4 * CHUNK - 1}"),
        ("/models/abc", f"bytes={4 * CHUNK}-{len(DATA) - 1}"),
    ]
    assert cache.connections == 1


def test_a_source_that_closes_after_each_answer_is_asked_over_another_connection(
    desk: Desk, cache: Cache
) -> None:
    cache.manner = "one request a connection"

    for first in range(3):
        desk.source.fetch(url(cache), OFFER, first, 1)
        assert frames(desk.take(1)) == {first: DATA[first * CHUNK : (first + 1) * CHUNK]}
        time.sleep(0.05)

    assert cache.connections == 3


@pytest.mark.parametrize(
    ("manner", "detail"),
    [
        ("whole", "expected status 206, got 200"),
        ("absent", "expected status 206, got 404"),
        ("elsewhere", "expected status 206, got 302 to http://192.0.2.1/elsewhere"),
        ("another range", "expected bytes 16384-49151/150000, got 'bytes 0-32767/150000'"),
        ("another size", "got 'bytes 16384-49151/150001'"),
        ("no range", "got ''"),
        ("longer", "sent more than was asked for"),
    ],
)
def test_what_is_not_the_range_asked_for_is_told(
    desk: Desk, cache: Cache, manner: str, detail: str
) -> None:
    cache.manner = manner

    desk.source.fetch(url(cache), OFFER, 1, 2)

    assert detail in desk.failure()
    assert len(cache.requests) == 1


def test_a_source_that_is_cut_off_has_its_whole_chunks_used(desk: Desk, cache: Cache) -> None:
    cache.manner = "cut"

    desk.source.fetch(url(cache), OFFER, 0, 4)
    right = frames(desk.take(2))

    assert right == {0: DATA[:CHUNK], 1: DATA[CHUNK : 2 * CHUNK]}
    assert "broke off at chunk 2" in desk.failure()


def test_a_certificate_that_nobody_vouches_for_is_refused(cache: Cache) -> None:
    desk = Desk(None)

    desk.source.fetch(url(cache), OFFER, 0, 1)

    assert "CERTIFICATE_VERIFY_FAILED" in desk.failure()
    assert cache.requests == []
    desk.source.close()


def test_nobody_at_the_address_is_told(desk: Desk) -> None:
    desk.source.fetch("https://127.0.0.1:1/abc", OFFER, 0, 1)

    assert "refused" in desk.failure()


def test_a_cancelled_range_is_let_go_at_once_and_the_next_one_is_fetched(
    desk: Desk, cache: Cache
) -> None:
    cache.manner = "slow"
    desk.source.fetch(url(cache), OFFER, 0, 2)
    deadline = time.monotonic() + 5
    while not cache.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)

    desk.source.cancel()
    cache.manner = "right"
    began = time.monotonic()
    desk.source.fetch(url(cache), OFFER, 2, 1)
    events = desk.take(1)

    assert frames(events) == {2: DATA[2 * CHUNK : 3 * CHUNK]}
    assert time.monotonic() - began < TIMEOUT_S


def test_a_source_that_sends_no_more_is_given_up(
    desk: Desk, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.shell.source.TIMEOUT_S", 0.3)
    cache.manner = "slow"

    desk.source.fetch(url(cache), OFFER, 0, 2)

    assert "timed out" in desk.failure()
