"""Which chunks go out: each once for all who want it, and no more than is fair."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.core.sender import (
    BURST,
    ECHO_S,
    GATHER_S,
    HOLD_S,
    LOOK_S,
    MAX_GATHER_S,
    Chunk,
    Due,
    Sender,
)
from tests.fleet.core.worlds import T0, offer_of
from wire.transfer import FetchRequest, FramePart

FILE = offer_of(200)
OTHER = offer_of(200, "b")


def sender_for(*devices: str) -> Sender:
    sender = Sender()
    for device in devices:
        sender.allow(device, [FILE, OTHER])
    return sender


def gathered(*devices: str) -> Sender:
    """Return a sender to whose transfers all of the devices have come already."""
    sender = sender_for(*devices)
    for index in (FILE.index, OTHER.index):
        for device in devices:
            sender.request(device, wants(0, part="index", index=index), T0 - 5)
    sender.due(T0 - 5 + LOOK_S)
    return sender


def wants(
    *numbers: int, part: FramePart = "data", index: str = FILE.index, own: bool = False
) -> FetchRequest:
    return FetchRequest.of(index, part, numbers, own)


def numbers(sender: Sender, now: float) -> list[int]:
    return [due.chunk.number for due in sender.due(now)]


def test_a_chunk_that_many_want_is_published_once_and_marked() -> None:
    sender = sender_for("a", "b", "c")

    sender.request("b", wants(2), T0)
    for device in "abc":
        assert sender.request(device, wants(0, 1), T0) is None

    chunks = [Chunk(FILE.index, "data", number) for number in range(3)]
    due = sender.due(T0 + LOOK_S)
    assert due == [
        Due(chunks[0], crowded=True, followed=True),
        Due(chunks[1], crowded=True, followed=True),
        Due(chunks[2], crowded=False, followed=True),
    ]
    assert sender.due(T0 + LOOK_S) == []
    assert sender.next_due() is None


def test_a_request_that_crosses_the_chunk_on_its_way_is_not_followed() -> None:
    sender = sender_for("a")
    sender.request("a", wants(0), T0)
    sender.due(T0)

    sender.request("a", wants(0), T0 + ECHO_S - 0.01)
    too_soon = sender.due(T0 + ECHO_S - 0.01)
    sender.request("a", wants(0), T0 + ECHO_S)

    assert too_soon == []
    assert numbers(sender, T0 + ECHO_S) == [0]


def test_a_wave_begins_when_all_have_asked() -> None:
    sender = sender_for("a", "b")

    sender.request("a", wants(0), T0)
    early = sender.due(T0 + 0.2)
    sender.request("b", wants(0), T0 + 0.21)

    assert early == []
    assert sender.due(T0 + 0.3) == [Due(Chunk(FILE.index, "data", 0), crowded=True, followed=True)]


def test_a_wave_does_not_wait_for_those_who_stay_away() -> None:
    sender = sender_for("a", "b")

    sender.request("a", wants(0), T0)
    waited = [at / 100 for at in range(100) if not sender.due(T0 + at / 100)]

    assert len(waited) == 99
    assert sender.next_due() is None


def test_a_trickle_of_newcomers_holds_a_wave_up_for_a_bounded_time() -> None:
    devices = [f"dev-{number}" for number in range(100)]
    sender = sender_for(*devices)

    begun = []
    for place, device in enumerate(devices[:-1]):
        sender.request(device, wants(0), T0 + 0.1 * place)
        begun += [T0 + 0.1 * place] * len(sender.due(T0 + 0.1 * place))

    assert begun[0] - T0 <= MAX_GATHER_S + 0.1


def test_who_joins_late_does_not_hold_up_the_others() -> None:
    sender = sender_for("a", "b", "c")
    sender.request("a", wants(0), T0)
    sender.due(T0 + GATHER_S)

    sender.request("b", wants(0), T0 + GATHER_S + 0.1)
    sender.request("a", wants(1), T0 + GATHER_S + 0.1)

    assert numbers(sender, T0 + GATHER_S + 0.1) == [1]


def test_a_device_that_left_the_shared_topic_is_served_alone_and_in_turns() -> None:
    sender = gathered("a", "b")
    sender.request("a", wants(*range(4)), T0)
    sender.request("b", wants(0, 1, own=True), T0)

    due = [(due.chunk.device, due.chunk.number) for due in sender.due(T0)]

    assert due == [("", 0), ("b", 0), ("", 1), ("b", 1), ("", 2), ("", 3)]


def test_what_a_device_should_not_run_is_refused() -> None:
    sender = sender_for("a")
    sender.allow("a", [OTHER])

    assert (
        sender.request("a", wants(0), T0)
        == "sha256:aaaaaaaaaaaa... is no index of what a should run"
    )
    assert sender.request("stranger", wants(0), T0) is not None
    assert sender.due(T0) == []
    assert sender.refused == 2


def test_a_chunk_beyond_the_end_is_refused() -> None:
    sender = sender_for("a")

    assert sender.request("a", wants(200), T0) == "expected at most 64 of 200 chunks, got up to 200"
    assert sender.request("a", wants(1, part="index"), T0) is not None
    assert sender.due(T0) == []


def test_transfers_take_turns() -> None:
    sender = sender_for("a")
    sender.request("a", wants(*range(64)), T0)
    sender.request("a", wants(0, 1, index=OTHER.index), T0)

    first = sender.due(T0)[:4]

    assert [due.chunk.artifact for due in first] == [FILE.index, OTHER.index] * 2


def test_a_call_returns_a_burst_at_most() -> None:
    sender = sender_for("a")
    for first in (0, 64):
        sender.request("a", wants(*range(first, first + 64)), T0)

    assert len(sender.due(T0)) == BURST
    assert sender.next_due() == 0.0
    assert len(sender.due(T0)) == BURST


def pull(sender: Sender, device: str, start: float, seconds: float) -> int:
    """Ask for the whole file over and over; return the bytes sent."""
    sent = 0
    for tick in range(int(seconds)):
        now = start + tick
        for first in range(0, FILE.chunks, 64):
            window = range(first, min(first + 64, FILE.chunks))
            sender.request(device, wants(*window), now)
        while chunks := sender.due(now):
            sent += len(chunks) * FILE.chunk_bytes
    return sent


def test_an_endless_loop_of_requests_costs_twice_the_file_in_a_minute() -> None:
    sender = sender_for("a")

    in_a_minute = pull(sender, "a", T0, 60)

    assert FILE.file_bytes < in_a_minute <= 2 * (FILE.file_bytes + FILE.index_bytes)
    assert sender.refused > 0


def test_a_device_that_is_restarted_for_ever_can_still_finish() -> None:
    sender = sender_for("a")
    pull(sender, "a", T0, 60)

    assert pull(sender, "a", T0 + 130, 10) >= FILE.file_bytes


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 30),
            st.floats(0, 0.4),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_every_request_is_followed_by_a_publish_unless_one_was_just_before(
    asks: list[tuple[str, int, float, bool]],
) -> None:
    sender = sender_for("a", "b", "c")
    now = T0
    asked: list[tuple[int, float]] = []
    published: dict[int, list[float]] = {}

    def publish(at: float) -> None:
        for number in numbers(sender, at):
            assert all(at - before >= ECHO_S - 1e-6 for before in published.get(number, []))
            published.setdefault(number, []).append(at)

    for device, number, pause, turn in asks:
        now += pause
        sender.request(device, wants(number), now)
        asked.append((number, now))
        if turn:
            publish(now)
    publish(now)
    publish(now + MAX_GATHER_S)

    for number, at in asked:
        assert any(moment > at - ECHO_S for moment in published[number])


HOLD = FetchRequest.to_hold(FILE.index)


def test_a_wave_waits_for_those_who_cannot_follow() -> None:
    sender = gathered("a", "b", "c")
    sender.request("a", wants(0, 1), T0)

    sender.request("b", HOLD, T0)
    sender.request("c", HOLD, T0)

    assert sender.due(T0) == []
    look = sender.next_due()
    assert look is not None and T0 < look <= T0 + LOOK_S
    assert sender.due(T0 + 0.9 * HOLD_S) == []
    assert numbers(sender, T0 + HOLD_S + 2 * LOOK_S) == [0, 1]


def test_nobody_waits_for_one_slow_device() -> None:
    sender = gathered("a", "b", "c")
    sender.request("a", wants(0, 1), T0)

    sender.request("b", HOLD, T0)

    assert numbers(sender, T0) == [0, 1]


def test_a_tenth_of_a_wave_may_be_slow() -> None:
    devices = [f"dev-{number}" for number in range(40)]
    sender = gathered(*devices)
    sender.request("dev-39", wants(0), T0)

    for device in devices[:4]:
        sender.request(device, HOLD, T0)
    few = numbers(sender, T0)
    sender.request("dev-39", wants(1), T0)
    sender.request(devices[4], HOLD, T0)

    assert few == [0]
    assert sender.due(T0) == []


def test_who_may_not_have_a_transfer_holds_nobody() -> None:
    sender = gathered("a", "b")
    sender.request("a", wants(0), T0)

    for stranger in ("x", "y", "z"):
        assert sender.request(stranger, HOLD, T0) is not None

    assert numbers(sender, T0) == [0]
