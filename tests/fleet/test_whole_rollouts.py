"""The bench `gates` in short: whole rollouts of twins and of planted losses."""

from fleet.core.views import RolloutStatus
from scripts.benches.gates import FIRST, aborted, leaning, peeked, run, skewed

RUNS = 15


def test_retrained_twins_finish_where_a_peeked_test_calls_them_off():
    courses = [run(kind, 300, seed) for seed in range(RUNS) for kind in (leaning(0), skewed)]

    done = sum(course.status is RolloutStatus.COMPLETED for course in courses)
    assert sum(map(aborted, courses)) <= 3
    assert done >= 0.8 * len(courses)
    assert sum(course.refused for course in courses) > 0
    assert sum(map(peeked, courses)) > 0.15 * len(courses)


def test_five_points_less_are_found_by_the_first_wave_and_committed_nowhere_with_usual_labels():
    courses = [run(leaning(5), 300, seed) for seed in range(RUNS)]

    assert all(aborted(course) and course.told <= FIRST for course in courses)
    assert all(course.committed <= 3 for course in courses)
