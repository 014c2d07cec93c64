"""When a device may forget its telemetry, and when its orders are sent again."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.core.courier import Courier
from fleet.core.ledger import Ledger, Number
from tests.fleet.core.worlds import T0


def one(seq: int, boot: str = "boot", first: int | None = None) -> list[Number]:
    return [Number(boot, first or seq, seq)]


def test_a_complete_batch_is_acknowledged_and_what_it_skips_is_missing() -> None:
    ledger = Ledger(acked=100, boots=("old",))

    ledger.note([Number("old", 104, 104), Number("old", 105, 109)], complete=True)
    ledger.note(one(107, "old"), complete=True)

    assert ledger.acked == 109
    assert ledger.missing == 3, "101 to 103; 105 to 108 were merged into 109"


def test_what_overtakes_others_acknowledges_nothing_and_is_not_missing_later() -> None:
    ledger = Ledger(acked=100, boots=("old",))

    ledger.note(one(110, "new"), complete=False)
    ahead = ledger.acked
    ledger.note(one(120, "new", first=111), complete=True)

    assert ahead == 100
    assert (ledger.acked, ledger.missing) == (120, 9)


def test_an_old_number_from_an_unknown_boot_starts_the_ledger_anew() -> None:
    ledger = Ledger(acked=100, boots=("old",))

    assert not ledger.restarts("old", 1), "a repeat"
    assert ledger.repeats("old", 1)
    assert not ledger.restarts("new", 101), "an agent that restarted"
    assert ledger.restarts("new", 1), "a disk that was wiped"
    assert not ledger.repeats("new", 1)
    ledger.note([Number("new", 1, 1), Number("new", 2, 2)], complete=True)
    ledger.note(one(3, "new"), complete=True)
    assert (ledger.acked, ledger.missing) == (3, 0)


def test_a_controller_that_is_new_to_a_device_misses_nothing_of_before() -> None:
    ledger = Ledger()

    ledger.note(one(5000, first=4990), complete=True)

    assert (ledger.acked, ledger.missing) == (5000, 0)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3), st.booleans()), max_size=30))
def test_a_ledger_that_was_kept_goes_on_as_if_nothing_had_been(
    batches: list[tuple[int, int, bool]],
) -> None:
    ledger, kept = Ledger(), Ledger()

    for seq, merged, complete in batches:
        number = one(seq, first=max(1, seq - merged))
        ledger.note(number, complete=complete)
        kept = Ledger.load(kept.dump())
        kept.note(number, complete=complete)

    assert kept.dump() == ledger.dump()
    assert ledger.acked == max(
        (seq for seq, _, complete in batches if complete), default=ledger.acked
    )


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
