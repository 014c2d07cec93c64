"""Class counts that leave with noise: its distribution, and that nothing else tells of classes."""

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import PrivacyConfig, privacy_environ
from agent.core.merging import merge
from agent.engine.noise import discrete_laplace
from agent.engine.privacy import DAY_S, ClassCounts, Privacy
from tests.agent.engine.harness import (
    CLASSES,
    Client,
    Listeners,
    Release,
    engine,
    one_hot,
)
from tests.agent.engine.models import onnx_classifier
from wire.codec import validate
from wire.manifest import Baseline, FeatureBaseline
from wire.telemetry import ScoreWindow

DRAWS = 8000
COUNTS = st.dictionaries(st.integers(0, CLASSES - 1), st.integers(1, 50), min_size=1)
SECRETS = ("predicted", "confusion", "confidence", "confidence_sum", "calibration", "estimate")


@pytest.fixture
def release(tmp_path: Path) -> Release:
    def bins(name: str) -> FeatureBaseline:
        return FeatureBaseline(name=name, edges=(0.0, 0.5, 1.0), counts=(5, 5))

    return Release(
        tmp_path / "release",
        onnx_classifier(),
        baseline=Baseline(samples=10, features=(bins("confidence"), bins("image.mean"))),
        calibration=((0.0, 0.1), (1.0, 0.9)),
    )


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 4), (1, 1), (5, 2), (3, 20)])
def test_noise_has_the_distribution_that_it_claims(numerator: int, denominator: int) -> None:
    seeded = random.Random(20261124)
    ratio = math.exp(-numerator / denominator)

    drawn = [discrete_laplace(numerator, denominator, seeded.randrange) for _ in range(DRAWS)]

    # Every value on its own while ten are expected of it, the tails together.
    def share(x: int) -> float:
        return (1 - ratio) / (1 + ratio) * ratio ** abs(x)

    edge = max(x for x in range(200) if share(x) * DRAWS >= 10)
    cells = {x: (drawn.count(x), share(x) * DRAWS) for x in range(-edge, edge + 1)}
    tail = ratio ** (edge + 1) / (1 + ratio) * DRAWS
    observed = [
        *cells.values(),
        (sum(x > edge for x in drawn), tail),
        (sum(x < -edge for x in drawn), tail),
    ]
    square = sum((seen - due) ** 2 / due for seen, due in observed)
    free = len(observed) - 1
    # Wilson and Hilferty's approximation of the 99.9% quantile.
    limit = free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3
    assert square < limit


@given(COUNTS, st.booleans())
def test_whatever_was_counted_a_window_tells_of_classes_with_noise_alone(
    predicted: dict[int, int], labelled: bool
) -> None:
    guard = ClassCounts(Privacy("0.5"), _manifest(), CLASSES)
    counts = {
        "requests": sum(predicted.values()),
        "predicted": predicted,
        "confusion": {f"{one},{one}": n for one, n in predicted.items()} if labelled else {},
        "confidence": {19: 3},
        "confidence_sum": 2_900_000,
        "calibration": {19: [3, 2_900_000, 3]},
        "estimate": {"samples": 3, "sum_p": 1, "spread": 1},
        "outcomes": {"accepts": 3, "matched": 2, "within": 4},
        "drift": {0: [1, 2], 1: [2, 1]},
    }

    told = guard.hide(counts, 1000, last=False)

    assert not any(counts[name] for name in SECRETS)
    assert counts["outcomes"] == {"within": 4} and counts["drift"] == {1: [2, 1]}
    assert told["epsilon"] == 0.5 and told["epsilon_windows"] == 1
    assert sorted(told["noised"]) == list(range(CLASSES)), "zeros get noise as well"


def test_noise_is_drawn_once_for_what_is_counted() -> None:
    guard = ClassCounts(Privacy("0.5"), _manifest(), CLASSES)

    first = guard.hide({"predicted": {1: 4}}, 1000, last=False)
    second = guard.hide({"predicted": {}}, 1060, last=False)

    assert first["epsilon_windows"] == 1
    assert "noised" not in second, "the same counts never leave twice"


def test_with_a_budget_counts_wait_and_a_day_costs_no_more_whatever_engines_come_and_go() -> None:
    privacy = Privacy("0.5", "2")
    drawn, engines = 0, random.Random(7)
    guard = ClassCounts(privacy, _manifest(), CLASSES)

    for minute in range(3 * DAY_S // 60):
        now = DAY_S * 20_000 + 60 * minute
        if engines.random() < 0.002:
            drawn += "noised" in guard.hide({"predicted": {0: 1}}, now, last=True)
            guard = ClassCounts(privacy, _manifest(), CLASSES)
        drawn += "noised" in guard.hide({"predicted": {0: 1}}, now + 1, last=False)

    assert 6 <= drawn <= 3 * 4


def test_of_a_model_with_too_many_classes_nothing_is_told_and_the_log_says_so() -> None:
    guard = ClassCounts(Privacy("0.5"), _manifest(), 100_000)

    told = guard.hide({"predicted": {99_999: 1}}, 1000, last=False)

    assert told == {"epsilon": 0.5}
    assert "expected up to 2048 classes, got 100000; nothing is told of them" in guard.notes[0]


def test_a_real_engine_tells_of_classes_with_noise_and_of_requests_exactly(
    release: Release, tmp_path: Path
) -> None:
    listeners = Listeners(tmp_path)
    environ = privacy_environ(PrivacyConfig(epsilon=1.0))
    windows = []

    with engine(listeners, environ=environ) as running:
        running.serve(release)
        client = Client(listeners.port)
        for half in range(2):
            for number in range(30):
                assert client.infer(one_hot(1), f"{half}-{number}").status == 200
            labelled = {"request_id": f"{half}-0", "label": 1}
            assert client.ask("POST", "/v2/feedback", labelled).status == 200
            (window,) = running.report().windows
            windows.append(window)
        client.close()
    listeners.close()

    for window in windows:
        assert not any(window.counts.get(name) for name in SECRETS)
        assert window.counts["requests"] == 30
        assert (window.counts["labelled"], window.counts["correct"]) == (1, 1)
        assert set(window.counts["drift"]) == {"1"}
        assert set(window.counts["noised"]) == {"0", "1", "2"}
        assert abs(window.counts["noised"]["1"] - 30) < 60
    one, other = (_on_the_wire(window.counts, seq) for seq, window in enumerate(windows, 1))
    both = merge(one, other)
    assert both.epsilon == 1.0 and both.epsilon_windows == 2
    assert both.noised == {n: one.noised[n] + other.noised[n] for n in range(CLASSES)}


def _on_the_wire(counts: dict, seq: int) -> ScoreWindow:
    head = {
        "device": "cam-1", "boot": "b", "seq": seq, "model": "digits", "version": 1,
        "manifest": "sha256:" + "0" * 64, "variant": "only", "start": 1, "end": 2,
    }  # fmt: skip
    return validate(ScoreWindow, {**counts, "latency": {"bins": counts["latency"]}, **head})


def _manifest():  # type: ignore[no-untyped-def]
    class Known:
        ref = "digits@1"
        baseline = Baseline(
            samples=2,
            features=(
                FeatureBaseline(name="confidence", edges=(0.0, 1.0), counts=(2,)),
                FeatureBaseline(name="image.mean", edges=(0.0, 1.0), counts=(2,)),
            ),
        )

    return Known()
