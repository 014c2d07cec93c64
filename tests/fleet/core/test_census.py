"""What is known of devices, from messages in any order."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.core.census import CLASH_S, SILENT_AFTER_S, Census
from tests.fleet.core.worlds import NEW, OLD, T0, report, status


def test_an_older_report_of_the_same_boot_changes_nothing() -> None:
    census = Census()
    census.hear_reported(report("a", 7, NEW), T0, retained=False)

    taken = census.hear_reported(report("a", 6, OLD), T0 + 30, retained=False)

    serving = census.get("a").serving("digits")
    assert not taken
    assert serving is not None and serving.manifest == NEW


def test_a_late_report_of_an_earlier_boot_changes_nothing() -> None:
    census = Census()
    census.hear_reported(report("a", 7, OLD, boot="one"), T0, retained=False)
    census.hear_reported(report("a", 1, NEW, boot="two"), T0, retained=False)

    assert not census.hear_reported(report("a", 7, OLD, boot="one"), T0, retained=False)
    assert census.hear_reported(report("a", 8, OLD, boot="one"), T0, retained=False), "it is alive"


@given(st.permutations(range(1, 8)), st.lists(st.integers(1, 7), max_size=5))
def test_reports_in_any_order_end_at_the_last_one(order: list[int], again: list[int]) -> None:
    census = Census()

    for sequence in [*order, *again]:
        census.hear_reported(report("a", sequence, revision=sequence), T0, retained=False)

    assert census.get("a").revision == 7


def test_reports_without_numbers_are_told_apart_by_their_revision() -> None:
    census = Census()
    census.hear_reported(report("a", 0, NEW, revision=5), T0, retained=False)

    assert not census.hear_reported(report("a", 0, OLD, revision=4), T0, retained=False)
    assert not census.hear_reported(report("a", 0, NEW, revision=5), T0, retained=False)
    assert census.hear_reported(report("a", 0, OLD, revision=5), T0, retained=False)


def test_the_will_of_an_earlier_agent_cannot_take_a_later_one_offline() -> None:
    census = Census()
    census.hear_status(status("a", nonce="one"), T0, retained=False)
    census.hear_status(status("a", nonce="two"), T0 + 5, retained=False)

    census.hear_status(status("a", nonce="one", online=False), T0 + 20, retained=False)

    assert census.get("a").online(T0 + 20)
    assert not census.get("a").clash(T0 + 20)


def test_an_agent_that_speaks_again_after_another_came_is_a_clash() -> None:
    census = Census()
    census.hear_status(status("a", nonce="one"), T0, retained=False)
    census.hear_status(status("a", nonce="two"), T0 + 5, retained=False)
    census.hear_status(status("a", nonce="one"), T0 + 6, retained=False)

    assert census.get("a").clash(T0 + 7)
    assert not census.get("a").clash(T0 + 6 + CLASH_S), "neither spoke again"


def test_a_device_that_is_back_before_its_last_will_is_no_clash() -> None:
    census = Census()
    census.hear_status(status("a", nonce="one"), T0, retained=False)

    census.hear_status(status("a", nonce="two"), T0 + 5, retained=False)

    assert not census.get("a").clash(T0 + 6)


def test_a_restart_is_no_clash() -> None:
    census = Census()
    census.hear_status(status("a", nonce="one"), T0, retained=False)
    census.hear_status(status("a", nonce="one", online=False), T0 + 5, retained=False)

    census.hear_status(status("a", nonce="two"), T0 + 5, retained=False)

    assert not census.get("a").clash(T0 + 5)


def test_a_device_that_says_nothing_for_long_counts_as_offline() -> None:
    census = Census()
    census.hear_status(status("a"), T0, retained=False)

    assert census.get("a").online(T0 + SILENT_AFTER_S - 1)
    assert not census.get("a").online(T0 + SILENT_AFTER_S)


def test_what_a_broker_retained_is_no_sign_that_the_device_spoke() -> None:
    census = Census()

    census.hear_reported(report("a", 1), T0, retained=True)
    census.hear_status(status("a"), T0, retained=True)

    assert census.get("a").last_seen == 0.0
    assert census.get("a").online(T0 + 1), "but the broker says that it is connected"
