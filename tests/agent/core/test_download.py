"""The chunk receiver by itself, against a source that answers as the test says."""

import itertools
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.download import (
    GAPS,
    PATIENCE_S,
    STEP_BACK_S,
    ChunkVerified,
    Download,
    FrameRejected,
    IndexVerified,
)
from tests.agent.core.world import CHUNK, index_of, offer_of
from wire.transfer import ChunkFrame

BODY = b"".join(bytes([n]) * CHUNK for n in range(100)) + b"tail"
LAST = 100


def frame(number: int, *, crowded: bool = False, followed: bool = False) -> ChunkFrame:
    payload = BODY[number * CHUNK : (number + 1) * CHUNK]
    return ChunkFrame("data", number, payload, crowded, followed)


def started(window: int = 16, rate_bytes_s: int = 0) -> Download:
    download = Download(offer_of(BODY), window, "seed", rate_bytes_s)
    download.open(index_of(BODY), frozenset(), 0.0)
    return download


def asked(download: Download, now: float) -> list[int]:
    return [n for request in download.requests_due(now) for n in request.numbers()]


def test_it_asks_for_a_window_and_again_when_half_of_it_came() -> None:
    download = started(window=16)

    assert asked(download, 0.0) == list(range(16))
    for number in range(7):
        download.receive(frame(number), 0.1)
    assert asked(download, 0.1) == []
    download.receive(frame(7), 0.1)

    assert asked(download, 0.1) == list(range(16, 24))


def test_chunks_that_others_asked_for_are_taken_and_never_asked_for() -> None:
    download = started(window=4)

    for number in range(50, 60):
        assert download.receive(frame(number), 0.0)
    wanted: list[int] = []
    now = 0.0
    while not download.complete:
        for number in asked(download, now):
            wanted.append(number)
            download.receive(frame(number), now)
        now += 0.01

    assert len(wanted) == len(set(wanted)) == LAST + 1 - 10
    assert not set(wanted) & set(range(50, 60))


def test_a_repeat_brings_nothing() -> None:
    download = started()

    first = download.receive(frame(3), 0.0)
    again = download.receive(frame(3), 0.0)

    assert first == [ChunkVerified(3 * CHUNK, frame(3).payload)]
    assert again == []


@pytest.mark.parametrize(
    "bad",
    [
        ChunkFrame("data", 3, frame(4).payload),
        ChunkFrame("data", 3, frame(3).payload[:-1]),
        ChunkFrame("data", LAST + 1, b"x"),
        ChunkFrame("data", 2**32 - 1, frame(3).payload),
        ChunkFrame("data", LAST, frame(3).payload),
    ],
)
def test_a_frame_that_cannot_be_right_is_rejected(bad: ChunkFrame) -> None:
    download = started()

    (event,) = download.receive(bad, 0.0)

    assert isinstance(event, FrameRejected)
    assert download.bad == 1
    assert download.done_bytes == 0


def test_a_wrong_index_is_thrown_away_and_asked_for_again() -> None:
    offer = offer_of(BODY)
    download = Download(offer, 16, "seed")
    download.open(b"", frozenset(), 0.0)
    index = index_of(BODY)
    forged = b"\0" * len(index)

    def give(data: bytes) -> list[object]:
        events: list[object] = []
        for n in range(offer.part_chunks("index")):
            payload = data[n * CHUNK : (n + 1) * CHUNK]
            events += download.receive(ChunkFrame("index", n, payload), 0.0)
        return events

    assert asked(download, 0.0) == list(range(offer.part_chunks("index")))
    assert [type(event) for event in give(forged)] == [FrameRejected]
    assert asked(download, 0.1) == []
    assert asked(download, download.next_due() or 0.0) == list(range(offer.part_chunks("index")))
    assert give(index) == [IndexVerified(index)]
    assert download.part == "data"


def test_silence_is_answered_with_longer_and_longer_waits() -> None:
    download = started(window=8)
    asked(download, 0.0)

    times, now = [], 0.0
    while now < 300:
        due = download.next_due()
        assert due is not None
        now = max(now, due)
        if asked(download, now):
            times.append(now)

    waits = [b - a for a, b in itertools.pairwise(times)]
    assert len(times) < 15
    assert all(wait <= 60 * 1.25 for wait in waits)
    assert waits[3] > 2 * waits[0]


def test_a_lost_chunk_is_asked_for_again_while_others_flow() -> None:
    download = started(window=8)
    lost = {3}
    now, requests = 0.0, 0
    while not download.complete:
        for number in asked(download, now):
            requests += 1
            if number in lost:
                lost.discard(number)
            else:
                download.receive(frame(number), now)
        now += 0.05
        assert now < 60

    assert requests == LAST + 2


def test_a_bandwidth_cap_holds_over_the_whole_transfer() -> None:
    download = started(window=32, rate_bytes_s=5 * CHUNK)

    now = 0.0
    while not download.complete:
        for number in asked(download, now):
            download.receive(frame(number), now)
        due = download.next_due()
        if due is not None:
            assert due > now, "it must not ask to be woken for nothing"
            now = due

    assert 18.0 <= now <= 21.0


def test_a_cap_below_one_chunk_a_second_still_ends() -> None:
    download = started(rate_bytes_s=CHUNK // 4)

    now = 0.0
    while not download.complete and now < 1000:
        for number in asked(download, now):
            download.receive(frame(number), now)
        now = max(now + 1e-6, download.next_due() or now)

    assert download.complete
    assert now > 390


def poison(number: int) -> ChunkFrame:
    return ChunkFrame("data", number, b"\xff" * CHUNK)


def test_a_source_that_keeps_poisoning_is_asked_less_and_less() -> None:
    download = started(window=32)

    now, rounds, wrong = 0.0, [], 0
    while now < 600:
        numbers = asked(download, now)
        if numbers:
            rounds.append(now)
        for number in numbers:
            download.receive(poison(number), now)
            wrong += 1
        due = download.next_due()
        assert due is not None and due > now
        now = due

    waits = [b - a for a, b in itertools.pairwise(rounds)]
    assert download.bad == wrong > 0
    assert len(rounds) <= 16
    assert 1.4 < waits[0] < 2.6
    assert all(wait <= 60 * 1.25 for wait in waits) and max(waits) > 45


def test_poison_that_nobody_asked_for_does_not_prolong_the_silence() -> None:
    download = started(window=16)
    asked(download, 0.0)
    for _ in range(16):
        download.receive(poison(1), 0.0)
    due = download.next_due()

    for _ in range(1000):
        download.receive(poison(1), 0.5)

    assert download.next_due() == due
    assert due is not None and asked(download, due) == list(range(16))


def test_one_good_chunk_ends_the_silence() -> None:
    download = started(window=16)
    asked(download, 0.0)
    for _ in range(16):
        download.receive(poison(1), 0.0)
    assert asked(download, 0.1) == []

    download.receive(frame(0), 0.2)

    due = download.next_due()
    assert due is not None and due < 1.5
    assert asked(download, due) == list(range(1, 17))


def test_a_few_wrong_frames_among_good_ones_slow_nothing_down() -> None:
    download = started(window=16)

    now = 0.0
    while not download.complete and now < 60:
        for number in asked(download, now):
            if number % 5 == 0:
                download.receive(poison(number), now)
            download.receive(frame(number), now)
        now += 0.01

    assert download.complete
    assert now < 1


def test_an_index_that_is_always_wrong_is_asked_for_less_and_less() -> None:
    offer = offer_of(BODY)
    download = Download(offer, 16, "seed")
    download.open(b"", frozenset(), 0.0)

    now, rounds = 0.0, 0
    while now < 600:
        numbers = asked(download, now)
        rounds += bool(numbers)
        for number in numbers:
            length = offer.chunk_length("index", number)
            download.receive(ChunkFrame("index", number, bytes(length)), now)
        due = download.next_due()
        assert due is not None and due > now
        now = due

    assert rounds <= 16
    assert download.bad == rounds


# ---- leading and following


def test_a_device_follows_whoever_asks_for_what_it_needs() -> None:
    download = started(window=8)
    asked(download, 0.0)

    for number in range(8):
        download.receive(frame(number, crowded=True), 0.01)
    silent = asked(download, 0.05)
    for number in range(8, 40):
        download.receive(frame(number), 0.05 + number / 100)

    assert silent == []
    assert asked(download, 0.45) == []


def test_a_follower_takes_the_lead_when_nothing_new_comes() -> None:
    download = started(window=8)
    asked(download, 0.0)
    for number in range(8):
        download.receive(frame(number, crowded=True), 0.0)

    due = download.next_due()

    assert due is not None and PATIENCE_S[0] <= due <= PATIENCE_S[1]
    assert asked(download, due - 0.01) == []
    assert asked(download, due) == list(range(8, 16))


def test_repeats_do_not_keep_a_follower_waiting() -> None:
    download = started(window=8)
    download.receive(frame(5), 0.0)

    for tick in range(100):
        download.receive(frame(5), tick / 100)
        if asked(download, tick / 100):
            break

    assert tick / 100 <= PATIENCE_S[1] + 0.01


def test_patience_does_not_run_out_at_the_same_time_everywhere() -> None:
    ends = set()
    for seed in ("a", "b", "c", "d"):
        download = Download(offer_of(BODY), 8, seed)
        download.open(index_of(BODY), frozenset(), 0.0)
        download.receive(frame(50), 0.0)
        ends.add(download.next_due())

    assert len(ends) == 4


def test_who_needs_the_index_hears_that_others_are_on_their_way() -> None:
    download = Download(offer_of(BODY), 16, "seed")
    download.open(b"", frozenset(), 0.0)
    asked(download, 0.0)
    index = index_of(BODY)

    download.receive(frame(50), 0.01)
    for n in range(download.offer.part_chunks("index")):
        download.receive(ChunkFrame("index", n, index[n * CHUNK : (n + 1) * CHUNK]), 0.02)

    assert asked(download, 0.03) == []
    assert asked(download, 1.0) == list(range(16))


def led(download: Download, now: float, *, followed: bool) -> list[int]:
    """Answer all that a device asks for at `now`; return what that was."""
    numbers: list[int] = []
    while more := asked(download, now):
        numbers += more
        for number in more:
            download.receive(frame(number, followed=followed), now)
    return numbers


def test_a_leader_lets_others_lead_after_four_windows() -> None:
    download = started(window=4)

    first = led(download, 0.0, followed=True)
    download.receive(frame(40), 0.1)
    download.receive(frame(41), 0.2)
    waiting = asked(download, 0.1 + STEP_BACK_S)

    assert first == list(range(16))
    assert waiting == []
    assert asked(download, 0.2 + STEP_BACK_S + GAPS * 0.1) == [16, 17, 18, 19]


def test_a_leader_whom_nobody_relieves_leads_for_longer() -> None:
    download = started(window=4)
    led(download, 0.0, followed=True)

    again = led(download, STEP_BACK_S, followed=True)

    assert len(again) == 32


def test_on_a_slow_line_a_follower_waits_for_what_is_on_its_way() -> None:
    download = started(window=4)

    for number in range(20):
        download.receive(frame(40 + number), number * 1.0)

    assert asked(download, 19.0 + GAPS * 1.0) == []
    assert asked(download, 19.0 + GAPS * 1.0 + PATIENCE_S[1] * 8) == [0, 1, 2, 3]


def test_a_device_alone_leads_to_the_end() -> None:
    download = started(window=4)

    led(download, 0.0, followed=False)

    assert download.complete


def test_on_a_topic_of_its_own_it_follows_nobody() -> None:
    download = started(window=4)
    download.leave()

    download.receive(frame(50), 0.0)
    (request,) = download.requests_due(0.0)

    assert request.own
    assert request.numbers() == [0, 1, 2, 3]


def test_frames_that_others_asked_for_count_against_the_bandwidth_cap() -> None:
    download = started(window=8, rate_bytes_s=CHUNK)

    for number in range(20, 22):
        download.receive(frame(number), 0.0)
    early = download.overdrawn
    for number in range(22, 30):
        download.receive(frame(number), 0.1)

    assert not early
    assert download.overdrawn
    assert asked(download, 2.0) == []


@given(st.integers(2, 12), st.integers(0, 2**32), st.floats(0, 1.5))
def test_a_wave_costs_little_more_than_the_file(devices: int, seed: int, spread: float) -> None:
    """Devices that start apart, over a network that takes a while, and a sender as the fleet's."""
    random = Random(seed)
    starts = [random.uniform(0, spread) for _ in range(devices)]
    wave = [Download(offer_of(BODY), 16, f"dev-{n}") for n in range(devices)]
    flying: list[tuple[float, int, ChunkFrame]] = []
    published: Counter[int] = Counter()
    last: dict[int, float] = {}
    now = 0.0
    while not all(download.complete for download in wave):
        asked_for: dict[int, int] = {}
        for download, start in zip(wave, starts, strict=True):
            if now >= start and not download.opened:
                download.open(index_of(BODY), frozenset(), now)
            for number in asked(download, now):
                asked_for[number] = asked_for.get(number, 0) + 1
        for number, askers in sorted(asked_for.items()):
            if now - last.get(number, -1.0) >= 0.9:
                last[number] = now
                published[number] += 1
                sent = frame(number, crowded=askers > 1)
                flying += [(now + random.uniform(0.001, 0.03), n, sent) for n in range(devices)]
        for due, n, sent in [each for each in flying if each[0] <= now]:
            wave[n].receive(sent, due)
        flying = [each for each in flying if each[0] > now]
        now += 0.01
        assert now < 60

    late = sum(start > 0.05 for start in starts)
    assert published.total() <= 2 * (LAST + 1) + 16 * late


def test_frames_that_nobody_can_verify_do_not_keep_a_device_from_asking_for_long() -> None:
    download = Download(offer_of(BODY), 16, "seed")
    download.open(b"", frozenset(), 0.0)
    noise = ChunkFrame("data", 7, bytes(CHUNK))

    now, asked_at = 0.0, []
    while now < 30.0:
        download.receive(noise, now)
        if asked(download, now):
            asked_at.append(now)
        now += 0.05

    assert any(at > 5.0 for at in asked_at)


def test_on_its_own_topic_nothing_is_asked_for_again_while_something_comes() -> None:
    download = started(window=4)
    download.leave()
    asked(download, 0.0)

    for tick in range(30):
        download.receive(frame(50 + tick), tick / 10)
        assert asked(download, tick / 10 + 0.05) == []

    assert asked(download, 2.9 + 1.1) == [0, 1, 2, 3]
