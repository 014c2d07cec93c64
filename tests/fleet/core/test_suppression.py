"""Who few are is not told, neither by a row nor by what the other rows lack."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from fleet.core.suppression import OTHERS, fold


def of(**sizes: int) -> dict[str, set[str]]:
    return {name: {f"{name}-{n}" for n in range(size)} for name, size in sizes.items()}


def test_groups_of_few_devices_become_one():
    shown = fold(of(berlin=9, oslo=3, paris=2), 5)

    assert shown == {"berlin": "berlin", "oslo": OTHERS, "paris": OTHERS}


def test_the_next_smallest_joins_a_group_that_the_whole_would_betray():
    shown = fold(of(berlin=9, oslo=6, paris=2), 5)

    assert shown == {"berlin": "berlin", "oslo": OTHERS, "paris": OTHERS}


def test_where_all_together_are_few_nothing_is_shown():
    assert fold(of(berlin=2, oslo=2), 5) == {}
    assert fold({}, 5) == {}


def test_one_device_may_be_asked_for_by_who_says_so():
    assert fold(of(berlin=1, oslo=1), 1) == {"berlin": "berlin", "oslo": "oslo"}


def test_a_device_that_calls_its_group_the_others_is_not_shown_as_them():
    shown = fold({**of(berlin=9), OTHERS: {"x"}, "(other)": {"a", "b", "c", "d"}}, 5)

    assert shown == {"berlin": "berlin", OTHERS: OTHERS, "(other)": OTHERS}


GROUPS = st.dictionaries(
    st.sampled_from("abcdefg"), st.sets(st.integers(0, 30).map(str), max_size=12), max_size=6
)


@given(GROUPS, st.integers(1, 8))
def test_no_sum_or_difference_of_rows_and_whole_is_of_fewer_devices(groups, least):
    # Devices are in one group each, as they are with a label.
    seen: set[str] = set()
    apart = {}
    for name, devices in groups.items():
        if own := devices - seen:
            apart[name] = own
        seen |= own
    groups = apart

    shown = fold(groups, least)

    rows: dict[str, set[str]] = {}
    for name, row in shown.items():
        rows.setdefault(row, set()).update(groups[name])
    if not rows:
        assert len(seen) < least
        return
    assert set().union(*rows.values()) == seen, "the rows add up to the whole"
    for size in range(len(rows)):
        for some in combinations(rows.values(), size):
            left = seen - set().union(*some)
            assert len(left) >= least
