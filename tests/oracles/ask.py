"""Run by the oracles' Python: cases as JSON on stdin, what NannyML and others say on stdout.

Their modules are used as they are. What they also import in order to draw, to send usage to
their makers and to read settings is not installed: empty stand-ins take its place.
"""

import importlib.machinery
import json
import os
import sys
import types
from collections.abc import Sequence
from typing import Any

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
os.environ["DO_NOT_TRACK"] = "1"

_ABSENT = {"dotenv", "jinja2", "matplotlib", "plotly", "rich", "seaborn", "segment", "statsmodels"}


class _Anything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Absent(metaclass=_Anything):
    """Any class or function of what is not installed; to call it does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return None


class _StandIn(types.ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent


class _StandIns:
    """Finds and makes modules of what is not installed."""

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in _ABSENT:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _without_its_init(name: str, **attributes: object) -> None:
    """Make a package known whose own __init__ would import all that its makers offer."""
    parent, _, _ = name.rpartition(".")
    path = sys.modules[parent].__path__ if parent else None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    assert spec is not None and spec.submodule_search_locations is not None, name
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    module.__spec__ = spec
    for key, value in attributes.items():
        setattr(module, key, value)
    sys.modules[name] = module


sys.meta_path.insert(0, _StandIns())  # type: ignore[arg-type]
_without_its_init("nannyml", __version__="0.13.1")
for _name in ("nannyml.drift", "nannyml.drift.univariate", "nannyml.performance_estimation",
              "evidently", "evidently.legacy", "evidently.legacy.calculations"):  # fmt: skip
    _without_its_init(_name)

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from evidently.legacy.calculations.stattests import (  # noqa: E402
    hellinger_stat_test,
    jensenshannon_stat_test,
    psi_stat_test,
)
from evidently.legacy.core import ColumnType  # noqa: E402
from nannyml.calibration import Calibrator, NoopCalibrator  # noqa: E402
from nannyml.chunk import SizeBasedChunker  # noqa: E402
from nannyml.drift.univariate.methods import FeatureType, MethodFactory  # noqa: E402
from nannyml.performance_estimation.confidence_based import CBPE  # noqa: E402
from nannyml.thresholds import ConstantThreshold  # noqa: E402
from sklearn.calibration import calibration_curve  # noqa: E402
from sklearn.metrics import accuracy_score, confusion_matrix  # noqa: E402


def labelled(true: list[int], predicted: list[int], top: list[float]) -> dict[str, Any]:
    """scikit-learn on labelled answers; ECE of the points of its reliability diagram."""
    right = np.array(true) == np.array(predicted)
    accuracy, confidence = calibration_curve(right, top, n_bins=20, strategy="uniform")
    counts = np.histogram(top, np.linspace(0, 1, 21))[0]
    weights = counts[counts > 0] / len(top)
    return {
        "accuracy": accuracy_score(true, predicted),
        "confusion": confusion_matrix(true, predicted).tolist(),
        "points": [confidence.tolist(), accuracy.tolist()],
        "ece": float((weights * np.abs(accuracy - confidence)).sum()),
    }


def distances(reference: list[int], live: list[int]) -> dict[str, float]:
    """NannyML and Evidently on counts of categories."""
    one, other = (
        pd.Series(np.repeat(np.arange(len(counts)), counts), name="bin")
        for counts in (reference, live)
    )
    said = {}
    for key in ("jensen_shannon", "hellinger"):
        method = MethodFactory.create(
            key,
            FeatureType.CATEGORICAL,
            chunker=SizeBasedChunker(chunk_size=len(one)),
            threshold=ConstantThreshold(lower=None, upper=0.1),
        )
        said[f"nannyml_{key}"] = float(method.fit(one).calculate(other))
    for test in (jensenshannon_stat_test, hellinger_stat_test, psi_stat_test):
        result = test(one.copy(), other.copy(), ColumnType.Categorical, 0.1)
        said[f"evidently_{test.name}"] = float(result.drift_score)
    return said


class _Shared(Calibrator):  # type: ignore[misc]
    """The calibration of a manifest: what a top score is worth, between points."""

    def __init__(self, points: list[list[float]]) -> None:
        self._points = np.array(points)

    def fit(self, y_pred_proba: Any, y_true: Any, *_: Any, **__: Any) -> None:
        """It is given."""

    def calibrate(self, y_pred_proba: Any, *_: Any, **__: Any) -> Any:
        scores = np.asarray(y_pred_proba, float)
        sure = np.interp(np.maximum(scores, 1 - scores), *self._points.T)
        return np.where(scores >= 0.5, sure, 1 - sure)


def cbpe_of_two(
    points: list[list[float]], reference: list[list[float]], live: list[float]
) -> dict[str, Any]:
    """NannyML's CBPE of a model with two classes; reference: scores and true classes."""
    known = pd.DataFrame({"p": reference[0], "true": np.array(reference[1], int)})
    known["said"] = (known["p"] >= 0.5).astype(int)
    now = pd.DataFrame({"p": live})
    now["said"] = (now["p"] >= 0.5).astype(int)
    estimator = CBPE(
        metrics=["accuracy"], y_pred_proba="p", y_pred="said", y_true="true",
        problem_type="classification_binary", chunk_size=len(now), calibrator=_Shared(points),
    )  # fmt: skip
    estimator.fit(known)
    # Calibration helps on this reference, or the comparison would be without it.
    assert estimator.needs_calibration
    result = estimator.estimate(now).filter(period="analysis").data
    return {"accuracy": float(result[("accuracy", "value")].iloc[0])}


def cbpe_of_many(
    scores: list[list[float]], true: list[int], live: list[list[float]]
) -> dict[str, Any]:
    """NannyML's CBPE of a model with many classes whose scores are probabilities already."""
    names = [str(number) for number in range(len(scores[0]))]
    columns = {name: f"p{name}" for name in names}

    def frame(rows: list[list[float]]) -> pd.DataFrame:
        told = pd.DataFrame(rows, columns=list(columns.values()))
        told["said"] = [names[place] for place in np.argmax(rows, axis=1)]
        return told

    known = frame(scores)
    known["true"] = [names[place] for place in true]
    estimator = CBPE(
        metrics=["accuracy"], y_pred_proba=columns, y_pred="said", y_true="true",
        problem_type="classification_multiclass", chunk_size=len(live),
        calibrator=NoopCalibrator(),
    )  # fmt: skip
    estimator.fit(known)
    result = estimator.estimate(frame(live)).filter(period="analysis").data
    return {"accuracy": float(result[("accuracy", "value")].iloc[0])}


ASKED = {each.__name__: each for each in (labelled, distances, cbpe_of_two, cbpe_of_many)}

if __name__ == "__main__":
    cases = json.load(sys.stdin)
    answers = {name: ASKED[case.pop("ask")](**case) for name, case in cases.items()}
    json.dump(answers, sys.stdout)
