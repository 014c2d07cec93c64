"""Which chunks go out: each once for all who want it, and no more than is fair."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.core.sender import AGAIN_S, BURST, ECHO_S, Sender
from tests.fleet.core.worlds import T0, offer_of
from wire.transfer import FetchRequest, FramePart

FILE = offer_of(200)
OTHER = offer_of(200, "b")


def sender_for(*devices: str) -> Sender:
    sender = Sender()
    for device in devices:
        sender.allow(device, [FILE, OTHER])
    return sender


def wants(*numbers: int, part: FramePart = "data", index: str = FILE.index) -> FetchRequest:
    return FetchRequest.of(index, part, numbers)


def test_a_chunk_that_many_want_is_published_once() -> None:
    sender = sender_for("a", "b", "c")

    for device in "abc":
        assert sender.request(device, wants(0, 1), T0) is None

    assert sender.due(T0) == [(FILE.index, "data", 0), (FILE.index, "data", 1)]
    assert sender.due(T0) == []
    assert sender.next_due() is None


def test_a_device_that_comes_after_the_publish_gets_the_chunk_a_little_later() -> None:
    sender = sender_for("a", "b")
    sender.request("a", wants(0), T0)
    sender.due(T0)

    sender.request("b", wants(0), T0 + 0.05)

    assert sender.due(T0 + 0.05) == []
    assert sender.next_due() == T0 + ECHO_S
    assert sender.due(T0 + ECHO_S) == [(FILE.index, "data", 0)]


def test_a_device_that_asks_again_at_once_is_heard_half_a_second_later() -> None:
    sender = sender_for("a")
    sender.request("a", wants(0), T0)
    sender.due(T0)

    sender.request("a", wants(0), T0 + AGAIN_S - 0.01)
    too_soon = sender.due(T0 + AGAIN_S - 0.01)
    sender.request("a", wants(0), T0 + AGAIN_S)

    assert too_soon == []
    assert sender.due(T0 + AGAIN_S) == [(FILE.index, "data", 0)]


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

    assert [chunk[0] for chunk in first] == [FILE.index, OTHER.index] * 2


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
    for tick in range(int(seconds / 0.6)):
        now = start + tick * 0.6
        for first in range(0, FILE.chunks, 64):
            numbers = range(first, min(first + 64, FILE.chunks))
            sender.request(device, wants(*numbers), now)
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
def test_every_first_request_is_followed_by_a_publish(
    asks: list[tuple[str, int, float, bool]],
) -> None:
    sender = sender_for("a", "b", "c")
    now = T0
    first_asked: dict[tuple[str, int], float] = {}
    published: dict[int, list[float]] = {}

    def publish(at: float) -> None:
        for _, _, number in sender.due(at):
            assert all(at - before >= ECHO_S - 1e-6 for before in published.get(number, []))
            published.setdefault(number, []).append(at)

    for device, number, pause, turn in asks:
        now += pause
        sender.request(device, wants(number), now)
        first_asked.setdefault((device, number), now)
        if turn:
            publish(now)
    publish(now)
    publish(now + ECHO_S)

    for (_, number), at in first_asked.items():
        assert any(moment >= at for moment in published[number])
