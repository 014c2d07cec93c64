"""Totals of windows, and how sure an accuracy is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.scores import Totals, score_view
from wire.telemetry import Histogram, ScoreWindow


def window(seq: int, latency_us: float = 1500.0) -> ScoreWindow:
    return ScoreWindow(
        device="a",
        boot="b",
        seq=seq,
        model="digits",
        version=1,
        manifest="sha256:" + "1" * 64,
        variant="v",
        start=100 * seq,
        end=100 * seq + 60,
        requests=seq,
        errors=1,
        labelled=seq,
        correct=seq - 1,
        latency=Histogram(bins={Histogram.bin_of(latency_us): seq}),
        value_errors=None if seq == 3 else Histogram(bins={Histogram.bin_of(0.5e6): seq}),
    )


@given(st.permutations(range(1, 7)))
def test_windows_add_up_in_any_order(order: list[int]) -> None:
    totals = Totals.of(window(1))

    for seq in order:
        totals = totals.plus(window(seq))

    assert (totals.requests, totals.errors, totals.labelled, totals.correct) == (21, 6, 21, 15)
    assert (totals.since, totals.until, totals.latency.count) == (100, 660, 21)
    view = score_view(totals)
    assert view.valued == 18
    assert (view.error_p50, view.error_p95) == (pytest.approx(0.5, rel=0.01),) * 2


def test_nothing_labelled_is_no_accuracy_rather_than_none_right() -> None:
    view = score_view(Totals.of(window(1)))

    assert (view.accuracy, view.accuracy_low, view.p95_ms) == (None, None, None)
