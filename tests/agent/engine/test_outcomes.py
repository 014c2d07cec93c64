"""What makes an answer right, by task, and what windows say of how sure a model was."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control import ModelSpec
from agent.engine.comparison import Comparison, Outcome, Sight
from agent.engine.judging import BoxJudge, ClassJudge, Matches, ValueJudge
from agent.engine.scoreboard import Scoreboard
from wire.telemetry import Histogram

SPEC = ModelSpec("m", 1, "sha256:0", "only", "", {})
ONE, SAME, FAR = (0, 0.0, 0.0, 10.0, 10.0), (0, 1.0, 0.0, 11.0, 10.0), (0, 50.0, 50.0, 60.0, 60.0)


def test_classes_numbers_and_boxes_each_have_their_verdict() -> None:
    values = ValueJudge(0.5)
    true = np.array([1.0, 2.0])

    assert ClassJudge().outcome(1, 2, 2) == "win"
    assert ClassJudge().outcome(2, 1, 2) == "loss"
    assert ClassJudge().outcome(0, 1, 2) == "tie"
    assert values.outcome(np.array([1.0, 2.6]), np.array([1.4, 2.0]), true) == "win"
    assert values.outcome(np.array([1.0, math.nan]), np.array([9.0, 9.0]), true) == "tie"
    assert BoxJudge().outcome([ONE, FAR], [SAME], [ONE]) == "win"
    assert BoxJudge().outcome([], [], []) == "tie"


def test_boxes_match_once_by_class_and_overlap() -> None:
    assert BoxJudge().match([ONE, SAME, FAR], [SAME]) == Matches(1, 0, 2)
    assert BoxJudge(0.9).match([ONE], [SAME]) == Matches(0, 1, 1)
    assert BoxJudge().match([(1, *ONE[1:])], [ONE]) == Matches(0, 1, 1)


def test_true_boxes_are_counted_and_judged_once() -> None:
    board, comparison = Scoreboard(SPEC, 0), Comparison("m", "other")
    outcome = board.answered("r", 1.0, (0,), [0.9], found=[[ONE, FAR]])
    comparison.answered(outcome, (0,), [[SAME]])

    told = board.label_boxes("r", [[ONE]])
    board.label("r", (0,))
    window = board.take(1, None)

    assert told == Matches(1, 0, 1)
    assert window is not None
    assert window.counts["outcomes"] == {"matched": 1, "spurious": 1}
    assert (comparison.counts.labelled, comparison.counts.better) == (1, 1)


def test_a_yes_without_a_true_frame_is_a_false_accept() -> None:
    board = Scoreboard(SPEC, 0)
    outcome = board.answered("r", 1.0, (0, 1, 1, 0, 1), [0.9] * 5)
    outcome.accepts = [(1, 2), (4, 4)]
    board.heard(0.5, 5, 2)

    board.label("r", (0, 0, 1, 0, 0), frame_s=0.5)
    window = board.take(1, None)

    assert window is not None
    assert window.counts["outcomes"] == {
        "listened_s": 2, "accepts": 2, "labelled_s": 2, "false_accepts": 1
    }  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 2), st.floats(0.1, 1e7)), min_size=1, max_size=60
    ),
    cuts=st.sets(st.integers(0, 60)),
)
def test_windows_add_up_to_one_stream_and_their_bins_give_the_calibration_error(
    rows: list[tuple[float, int, float]], cuts: set[int]
) -> None:
    board = Scoreboard(SPEC, 0)
    total: dict[int, Any] = {}
    latency: dict[int, int] = {}
    sure = 0
    for number, (top, true, waited) in enumerate([*rows, (0.0, 0, 1.0)]):
        if number in cuts or number == len(rows):
            window = board.take(1, None)
            if window is not None:
                sure += window.counts.get("confidence_sum", 0)
                for place, count in window.counts["latency"].items():
                    latency[place] = latency.get(place, 0) + count
                for place, sums in window.counts.get("calibration", {}).items():
                    total[place] = np.add(total.get(place, 0), sums)
        if number == len(rows):
            break
        board.answered(f"r{number}", waited, (1,), [top])
        board.label(f"r{number}", (true,))

    tops, right = np.array([row[0] for row in rows]), np.array([row[1] == 1 for row in rows])
    bins = np.minimum((tops * 20).astype(int), 19)
    direct = sum(abs((tops - right)[bins == place].sum()) for place in range(20)) / len(rows)
    counted = sum(abs(p / 1e6 - good) for _, p, good in total.values()) / len(rows)
    assert counted == pytest.approx(direct, abs=1e-6)
    assert sure == sum(round(top * 1e6) for top in tops)
    expected: dict[int, int] = {}
    for _, _, waited in rows:
        place = Histogram.bin_of(waited)
        expected[place] = expected.get(place, 0) + 1
    assert latency == expected


def test_a_box_is_remembered_at_the_price_of_a_row() -> None:
    outcome = Outcome("r", (0,))
    outcome.sight = Sight([[ONE]])

    assert outcome.weight == 2
