"""When a device may forget its telemetry, and when its orders are sent again."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.core.courier import Courier
from fleet.core.ledger import GAP_S, Ledger
from tests.fleet.core.worlds import T0


@given(st.lists(st.integers(1, 12), max_size=40))
def test_nothing_is_acknowledged_that_did_not_come(received: list[int]) -> None:
    ledger = Ledger()

    for seq in received:
        ledger.note("boot", seq, T0)

    expected = 0
    while expected + 1 in received:
        expected += 1
    assert ledger.acked == expected


def test_a_gap_is_given_up_when_it_has_lasted() -> None:
    ledger = Ledger()
    for seq in (1, 2, 5, 6, 9):
        ledger.note("boot", seq, T0)

    ledger.settle(T0 + GAP_S - 1)
    early = ledger.acked
    ledger.settle(T0 + GAP_S)

    assert early == 2
    assert ledger.acked == 9
    assert ledger.gap_ends() is None


def test_a_gap_that_fills_is_not_waited_for() -> None:
    ledger = Ledger()
    ledger.note("boot", 2, T0)
    ledger.note("boot", 1, T0 + 5)

    assert (ledger.acked, ledger.gap_ends()) == (2, None)


def test_an_old_number_from_an_unknown_boot_starts_the_ledger_anew() -> None:
    ledger = Ledger(acked=100, boots=("old",))

    assert not ledger.restarts("old", 1), "a repeat"
    assert not ledger.restarts("new", 101), "an agent that restarted"
    assert ledger.restarts("new", 1), "a disk that was wiped"
    ledger.note("new", 1, T0)
    assert ledger.acked == 1


def test_a_complete_batch_is_acknowledged_whatever_is_missing() -> None:
    ledger = Ledger(acked=100, boots=("old",))

    ledger.note_batch([("new", 700)], complete=False)
    ahead = (ledger.acked, ledger.gap_ends())
    ledger.note_batch([("old", 205), ("old", 220)], complete=True)
    ledger.note_batch([("old", 150)], complete=True)

    assert ahead == (100, None), "it overtook others, and nobody waits for them"
    assert (ledger.acked, ledger.gap_ends()) == (220, None)


def test_a_batch_of_a_wiped_device_starts_the_ledger_anew() -> None:
    ledger = Ledger(acked=100, boots=("old",))

    ledger.note_batch([("new", 1), ("new", 2)], complete=True)
    ledger.note_batch([("new", 3)], complete=True)

    assert ledger.acked == 3


def test_an_order_is_sent_again_with_growing_pauses_until_it_is_taken_up() -> None:
    courier = Courier()
    courier.revised("a", 7, 6, T0)
    sent = [t for t in range(100) if courier.due(T0 + t, 10)]
    courier.taken("a", 7)

    assert sent == [0, 10, 30, 70]
    assert courier.due(T0 + 10_000, 10) == [], "one more was planned; it is called off"
    assert courier.next_due() is None


def test_a_device_that_wakes_gets_its_order_only_if_it_lags() -> None:
    courier = Courier()
    courier.revised("a", 7, 6, T0)
    courier.revised("b", 3, 3, T0)
    courier.due(T0, 10)

    courier.woke("a", T0 + 1)
    courier.woke("b", T0 + 1)

    assert courier.due(T0 + 1, 10) == ["a"]


def test_after_a_reconnect_everything_is_sent_once_in_portions() -> None:
    courier = Courier()
    for n in range(5):
        courier.revised(f"d-{n}", 1, 1, T0)
    courier.due(T0, 10)

    courier.everything(T0 + 60)
    portions = [courier.due(T0 + 60, 2) for _ in range(4)]

    assert [len(portion) for portion in portions] == [2, 2, 1, 0]
    assert {id for portion in portions for id in portion} == {f"d-{n}" for n in range(5)}
