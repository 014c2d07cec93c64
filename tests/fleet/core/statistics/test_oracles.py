"""What others compute from the same data: scikit-learn, NannyML, Evidently.

The data goes the way of a device's: an engine's scoreboard counts it in several windows, which
are added up as the controller adds them.
"""

import math
from typing import Any

import numpy as np
import pytest

from agent.control import ModelSpec
from agent.engine.scoreboard import Scoreboard
from fleet.core.scores import Totals
from fleet.core.statistics.calibration import calibration_error, estimated_accuracy, reliability
from fleet.core.statistics.distances import (
    hellinger,
    jensen_shannon,
    population_stability_index,
)
from fleet.core.statistics.drift import feature_drift
from fleet.core.tally import Tally
from tests.fleet.samples import sample_manifest
from tests.oracles import ask
from wire.manifest import Manifest
from wire.telemetry import MILLION, ScoreWindow

pytestmark = pytest.mark.xdist_group("oracles")

SPEC = ModelSpec("digits", 1, sample_manifest().digest, "int8-onnx", "", {})
POINTS = [[0.0, 0.0], [0.5, 0.45], [0.8, 0.6], [1.0, 0.85]]
"""A calibration: the model promises too much."""


def counted(answers: list[tuple[int, float, int | None]], manifest: Manifest | None = None
            ) -> Totals:  # fmt: skip
    """Return the sum of seven windows of answers: class, top score and label."""
    board, tally = Scoreboard(SPEC, 0, manifest), Tally()
    for at in range(7):
        for number, (answer, top, label) in enumerate(answers[at::7]):
            board.answered(f"{at}-{number}", 900.0, (answer,), [top])
            if label is not None:
                board.label(f"{at}-{number}", (label,))
        window = board.take(at + 1, None)
        assert window is not None
        names = {"model": "digits", "version": 1, "manifest": SPEC.manifest, "variant": "int8-onnx"}
        tally.add(
            ScoreWindow.model_validate(
                {
                    "device": "a",
                    "boot": "b",
                    "seq": at + 1,
                    "start": window.start,
                    "end": window.end,
                    **names,
                    **window.counts,
                }
            )
        )
    return tally.totals("a", "digits", 1, SPEC.manifest, "int8-onnx")


def tops(random: np.random.Generator, count: int) -> list[float]:
    """Return scores in whole millionths, as windows have them, none of them an edge of a bin."""
    whole = random.beta(4, 1.5, size=count) * 0.98 * MILLION
    return [(n + (n % 50_000 == 0)) / MILLION for n in whole.astype(int).tolist()]


class Cases:
    """The same data for both sides."""

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        self.tops = tops(random, 4_000)
        self.said = random.integers(0, 7, 4_000).tolist()
        right = random.random(4_000) < np.array(self.tops) * 0.9
        others = (np.array(self.said) + random.integers(1, 7, 4_000)) % 7
        self.true = np.where(right, self.said, others).tolist()
        self.counts = {
            "alike": ([400, 300, 200, 100], [41, 28, 22, 9]),
            "far apart": ([900, 50, 40, 10], [10, 40, 50, 900]),
            "one category": ([70], [3]),
            "forty categories": (
                random.integers(1, 90, 40).tolist(),
                random.integers(1, 900, 40).tolist(),
            ),
            "large": ([100_000, 100_001, 99_000], [7, 6, 5]),
            "empty on one side": ([50, 0, 30, 20], [40, 10, 0, 50]),
        }
        scores = random.random(6_000)
        true = (random.random(6_000) < 0.5 + 0.6 * (scores - 0.5)).astype(int)
        self.reference_of_two = [scores.tolist(), true.tolist()]
        self.live_of_two = random.random(1_500).tolist()
        self.many = random.dirichlet([0.6] * 5, size=3_000)
        drawn = [int(random.choice(5, p=row)) for row in self.many[:2_000]]
        self.asked: dict[str, dict[str, Any]] = {
            "labelled": {"ask": "labelled", "true": self.true, "predicted": self.said,
                         "top": self.tops},
            "two": {"ask": "cbpe_of_two", "points": POINTS, "reference": self.reference_of_two,
                    "live": self.live_of_two},
            "many": {"ask": "cbpe_of_many", "scores": self.many[:2_000].tolist(), "true": drawn,
                     "live": self.many[2_000:].tolist()},
            **{name: {"ask": "distances", "reference": one, "live": other}
               for name, (one, other) in self.counts.items()},
            # Half an observation where there is none: told to who fills in nothing of the kind.
            **{f"{name}, halves filled in":
               {"ask": "distances", "reference": halves(one), "live": halves(other)}
               for name, (one, other) in self.counts.items()},
        }  # fmt: skip


def halves(counts: list[int]) -> list[int]:
    return [2 * count or 1 for count in counts]


@pytest.fixture(scope="module")
def cases() -> Cases:
    return Cases()


@pytest.fixture(scope="module")
def told(cases: Cases) -> dict[str, dict[str, Any]]:
    return ask(cases.asked)


def test_labelled_accuracy_and_confusion_are_those_of_scikit_learn(
    cases: Cases, told: dict[str, dict[str, Any]]
) -> None:
    totals = counted(list(zip(cases.said, cases.tops, cases.true, strict=True)))

    theirs = told["labelled"]
    assert totals.correct / totals.labelled == pytest.approx(theirs["accuracy"], rel=1e-12)
    assert theirs["confusion"] == [
        [totals.confusion.get(f"{true},{said}", 0) for said in range(7)] for true in range(7)
    ]


def test_the_calibration_error_and_its_diagram_are_those_of_scikit_learn(
    cases: Cases, told: dict[str, dict[str, Any]]
) -> None:
    totals = counted(list(zip(cases.said, cases.tops, cases.true, strict=True)))

    error = calibration_error(totals.calibration)
    points = reliability(totals.calibration)

    theirs = told["labelled"]
    assert error is not None
    assert error.ece == pytest.approx(theirs["ece"], abs=1e-12)
    assert [point.confidence for point in points] == pytest.approx(theirs["points"][0], abs=1e-12)
    assert [point.accuracy.share for point in points] == pytest.approx(theirs["points"][1])


def test_distances_are_those_of_nannyml_and_evidently(
    cases: Cases, told: dict[str, dict[str, Any]]
) -> None:
    for name, (reference, live) in cases.counts.items():
        theirs = told[name]
        # NannyML takes 1 less all shares for a category of its own where rounding leaves some.
        close = {"rel": 1e-12, "abs": 1e-7}
        assert jensen_shannon(reference, live) == pytest.approx(
            theirs["nannyml_jensen_shannon"], **close
        ), name
        assert hellinger(reference, live) == pytest.approx(theirs["nannyml_hellinger"], **close)
        # Evidently's is to the base e, ours to the base 2.
        assert jensen_shannon(reference, live) == pytest.approx(
            theirs["evidently_jensenshannon"] / math.sqrt(math.log(2)), **close
        )
        assert hellinger(reference, live) == pytest.approx(theirs["evidently_hellinger"], **close)


def test_the_stability_index_is_that_of_evidently(
    cases: Cases, told: dict[str, dict[str, Any]]
) -> None:
    for name, (reference, live) in cases.counts.items():
        theirs = told[name if 0 not in (*reference, *live) else f"{name}, halves filled in"]
        assert population_stability_index(reference, live) == pytest.approx(
            theirs["evidently_psi"], rel=1e-10, abs=1e-15
        ), name


def test_a_drift_finding_tells_these_same_distances(
    cases: Cases, told: dict[str, dict[str, Any]]
) -> None:
    reference, live = cases.counts["forty categories"]

    found = feature_drift(reference, live, apart=0)

    assert found is not None
    assert found.distance == pytest.approx(
        told["forty categories"]["nannyml_jensen_shannon"], rel=1e-9
    )
    assert found.psi == pytest.approx(told["forty categories"]["evidently_psi"], rel=1e-9)


MILLIONTH = 0.5 / MILLION
"""What rounding each answer's probability may do to their mean, at most."""


def test_estimated_accuracy_is_nannymls_with_the_same_calibration(
    cases: Cases, told: dict[str, dict[str, Any]]
) -> None:
    points = tuple((score, worth) for score, worth in POINTS)
    manifest = sample_manifest().model_copy(update={"calibration": points})
    answers = [(int(p >= 0.5), max(p, 1 - p), None) for p in cases.live_of_two]

    totals = counted(answers, manifest)
    found = estimated_accuracy(totals.estimate, 6_000)

    assert found is not None
    assert found.share == pytest.approx(told["two"]["accuracy"], abs=MILLIONTH)


def test_estimated_accuracy_of_many_classes_is_nannymls(
    cases: Cases, told: dict[str, dict[str, Any]]
) -> None:
    manifest = sample_manifest().model_copy(update={"calibration": ((0.0, 0.0), (1.0, 1.0))})
    answers = [(int(row.argmax()), float(row.max()), None) for row in cases.many[2_000:]]

    found = estimated_accuracy(counted(answers, manifest).estimate, 2_000)

    assert found is not None
    assert found.share == pytest.approx(told["many"]["accuracy"], abs=MILLIONTH)
