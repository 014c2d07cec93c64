"""From a release's reference data to what its manifest says of it: baseline and calibration.

Features are measured by the definitions in `wire.features`, as devices measure them.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet.workshop.errors import ArtifactError
from fleet.workshop.golden import load_arrays
from wire.features import CONFIDENCE, measure_of, step
from wire.manifest import Baseline, FeatureBaseline, Manifest, TensorSpec
from wire.task import TableInput

Numbers = NDArray[np.float64]

MAX_BYTES = 2 * 1024**3
"""Of reference data, unpacked."""
MIN_ROWS = 50
"""Of fewer, quantiles say nothing."""
BINS = 20
ROWS_A_BIN = 25
"""With few rows there are fewer bins: a test of two samples wants some in each."""
MAX_FEATURES = 64

MAX_ELEMENTS = 16
"""Of a small tensor, so many elements are features by themselves."""
CALIBRATION_ROWS = 200

TWENTIETHS: Numbers = np.linspace(0, 1, 21).round(2)
"""Bins of confidence, as in the windows that devices report."""

_BESIDE = ("predicted", "confidence", "label")
_KINDS = {"b": "numbers", "i": "numbers", "u": "numbers", "f": "numbers"}


@dataclass(frozen=True)
class Reference:
    """What `read_reference` made of a file."""

    baseline: Baseline
    calibration: tuple[tuple[float, float], ...] = ()
    """Empty unless the file has confidence, predicted and label."""


def feature_baseline(name: str, values: Numbers, edges: Numbers) -> FeatureBaseline:
    """Return the counts of `values` between `edges`; what is NaN or outside is counted apart."""
    here = values[~np.isnan(values)]
    counts, _ = np.histogram(here, edges)
    return FeatureBaseline(
        name=name,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        nan=len(values) - len(here),
        outside=len(here) - int(counts.sum()),
    )


def quantile_edges(values: Numbers, bins: int) -> Numbers:
    """Return edges of up to `bins` bins of about equal counts, of the finite values.

    They are rounded, so that a manifest is no longer than it must be: to a millionth, or to a
    millionth of the range where that is less.
    """
    finite = values[np.isfinite(values)]
    edges = np.quantile(finite, np.linspace(0, 1, bins + 1))
    spread = float(edges[-1] - edges[0])
    decimals = 6 if spread >= 1 or spread <= 0 else 6 + math.ceil(-math.log10(spread))
    unique: Numbers = np.unique(edges.round(min(decimals, 300)))
    if len(unique) > 1:
        return unique
    # One value alone: the bin around it, which anything else is outside of.
    only = float(unique[0])
    wide = max(abs(only), 1.0) * 1e-6
    return np.array([only - wide, only + wide])


def calibration_table(confidence: Numbers, correct: NDArray[np.bool_]) -> tuple[tuple[float, float],
                                                                                ...]:  # fmt: skip
    """Return mean confidence and accuracy of each twentieth that occurs, kept ascending.

    Laplace's rule of succession: a bin without a mistake is not one that never errs.
    """
    bins = np.digitize(confidence, TWENTIETHS[1:-1])
    table = []
    best = 0.0
    for bin_ in np.unique(bins):
        here = bins == bin_
        best = max(best, float((correct[here].sum() + 1) / (here.sum() + 2)))
        table.append((round(float(confidence[here].mean()), 4), round(best, 4)))
    return tuple(table)


def read_reference(path: Path, manifest: Manifest) -> Reference:
    """Return what the data in `path` says of the release's inputs and answers.

    An .npz holds inputs by their names, a row a sample; a .csv a column for each element or
    column of the one input. Both may hold `predicted`, `confidence` and `label`, one a row.

    Raises:
        ArtifactError: not such a file, names or shapes that are not the release's, too few rows,
            or a feature without any number.
    """
    columns = _read_csv(path) if path.suffix == ".csv" else _read_npz(path)
    rows = {len(values) for values in columns.values()}
    if len(rows) != 1:
        told = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise _wrong(path, f"expected as many rows of each, got {told[:300]}")
    count = rows.pop()
    if count < MIN_ROWS:
        raise _wrong(path, f"expected at least {MIN_ROWS} rows, got {count}; give more of them")
    beside = {name: columns.pop(name) for name in _BESIDE if name in columns}
    features = _features(path, columns, manifest)
    bins = max(2, min(BINS, count // ROWS_A_BIN))
    made = [
        feature_baseline(name, values, quantile_edges(values, bins))
        for name, values in _checked(path, features).items()
    ]
    classes = _class_count(manifest)
    if beside and classes is None:
        raise _wrong(path, f"expected no {', '.join(beside)} of a model without classes")
    if CONFIDENCE in beside:
        made.append(feature_baseline(CONFIDENCE, _confidence(path, beside), TWENTIETHS))
    predicted = _numbers_of(path, "predicted", beside, classes)
    label = _numbers_of(path, "label", beside, classes)
    baseline = Baseline(
        samples=count,
        features=tuple(made),
        predicted=tuple(np.bincount(predicted, minlength=max(classes or 0, 0)).tolist())
        if predicted is not None
        else (),
    )
    if predicted is None or label is None or CONFIDENCE not in beside:
        return Reference(baseline)
    if count < CALIBRATION_ROWS:
        raise _wrong(
            path,
            f"expected at least {CALIBRATION_ROWS} rows to calibrate by, got {count}; give more, "
            "or leave out label",
        )
    return Reference(baseline, calibration_table(_confidence(path, beside), predicted == label))


def _wrong(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path.name}: {what}")


def _read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    arrays = load_arrays(path, MAX_BYTES, "reference data", "keep fewer rows")
    if not arrays:
        raise _wrong(path, "expected inputs by their names, got nothing")
    for name, array in arrays.items():
        if array.ndim < 1 or array.dtype.kind not in _KINDS:
            raise _wrong(path, f"{name}: expected numbers, a row a sample, got {array.dtype} of "
                               f"shape {array.shape}")  # fmt: skip
    return arrays


def _read_csv(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            names = [name.strip() for name in next(lines, [])]
            if not names or len(set(names)) != len(names) or len(names) > 4096:
                raise _wrong(path, "expected a first line of up to 4096 names that differ")
            found: list[list[float]] = []
            for row in lines:
                if not row:
                    continue
                if len(row) != len(names):
                    raise _wrong(path, f"line {lines.line_num}: expected {len(names)} fields, got "
                                       f"{len(row)}")  # fmt: skip
                found.append([_number(path, lines.line_num, field) for field in row])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _wrong(path, f"expected a table as .csv in UTF-8, got {error}") from error
    table = np.array(found, np.float64).reshape(-1, len(names))
    return {name: table[:, place] for place, name in enumerate(names)}


def _number(path: Path, line: int, field: str) -> float:
    """Return a field as a number; an empty one is NaN."""
    try:
        return float(field) if field.strip() else math.nan
    except ValueError:
        raise _wrong(path, f"line {line}: expected numbers, got {field[:40]!r}") from None


def _features(
    path: Path, columns: dict[str, NDArray[np.generic]], manifest: Manifest
) -> dict[str, Numbers]:
    """Return a value a row for every feature that there is to be."""
    if manifest.stream is not None:
        if columns:
            raise _wrong(path, "expected confidence, predicted and label alone of a model that "
                               f"listens, got {', '.join(columns)[:200]}")  # fmt: skip
        return {}
    if path.suffix == ".csv":
        return _named(path, columns, manifest)
    found: dict[str, Numbers] = {}
    inputs = {spec.name: spec for spec in manifest.inputs}
    for name, array in columns.items():
        if name not in inputs:
            known = ", ".join((*inputs, *_BESIDE))
            raise _wrong(path, f"{name}: expected one of {known}")
        found |= _of_tensor(path, inputs[name], array, manifest)
    return found


def _named(
    path: Path, columns: dict[str, NDArray[np.generic]], manifest: Manifest
) -> dict[str, Numbers]:
    """Return columns of a table whose names are features."""
    found = {}
    given = manifest.task.input
    for name, values in columns.items():
        full = name
        if isinstance(given, TableInput) and name in {each.name for each in given.columns}:
            full = f"{given.name}.{name}"
        try:
            if measure_of(full, manifest).kind == "confidence":
                raise ValueError(f"feature {full}: expected a feature of an input")
        except ValueError as error:
            raise _wrong(path, f"{error}") from None
        found[full] = values.astype(np.float64)
    return found


def _of_tensor(
    path: Path, spec: TensorSpec, array: NDArray[np.generic], manifest: Manifest
) -> dict[str, Numbers]:
    wanted = spec.shape[1:]
    if len(array.shape) - 1 != len(wanted) or any(
        size not in (-1, got) for size, got in zip(wanted, array.shape[1:], strict=True)
    ):
        raise _wrong(
            path,
            f"{spec.name}: expected rows of shape {wanted} (-1: any), got {tuple(array.shape[1:])}",
        )
    rows = array.reshape(len(array), -1)
    given, width = manifest.task.input, rows.shape[1]
    if isinstance(given, TableInput) and manifest.task.fed(manifest.inputs)["tensor"] == spec:
        return _of_table(rows, spec, given, manifest)
    if width <= MAX_ELEMENTS:
        reals = _reals(rows, spec)
        return {f"{spec.name}[{place}]": reals[:, place] for place in range(width)}
    spread = rows[:, :: step(width)]
    means, deviations = np.empty(len(rows)), np.empty(len(rows))
    for first in range(0, len(rows), 1024):  # a copy as FP64 of a few rows at a time
        some = _reals(spread[first : first + 1024], spec)
        with np.errstate(invalid="ignore", over="ignore"):
            means[first : first + 1024] = some.mean(axis=1)
            deviations[first : first + 1024] = some.std(axis=1)
    return {f"{spec.name}.mean": means, f"{spec.name}.std": deviations}


def _of_table(
    rows: NDArray[np.generic], spec: TensorSpec, given: TableInput, manifest: Manifest
) -> dict[str, Numbers]:
    """Return the columns of a table in their own units, categories by their place."""
    reals = _reals(rows, spec)
    found = {}
    for column in given.columns[:MAX_FEATURES]:
        name = f"{given.name}.{column.name}"
        measure = measure_of(name, manifest)
        if measure.width > 1:
            group = reals[:, measure.place : measure.place + measure.width]
            found[name] = np.where(group.max(axis=1) < 0.5, -1.0, group.argmax(axis=1))
        else:
            found[name] = reals[:, measure.place] * measure.scale + measure.offset
    return found


def _reals(rows: NDArray[np.generic], spec: TensorSpec) -> Numbers:
    reals: Numbers = rows.astype(np.float64)
    known = spec.quantization
    if known is not None and rows.dtype.kind in "iu" and len(known.scale) == 1:
        reals = (reals - (known.zero_point[0] if known.zero_point else 0)) * known.scale[0]
    return reals


def _checked(path: Path, features: dict[str, Numbers]) -> dict[str, Numbers]:
    if len(features) > MAX_FEATURES - 1:
        raise _wrong(path, f"expected at most {MAX_FEATURES - 1} features, got {len(features)}")
    for name, values in features.items():
        if not np.isfinite(values).any():
            raise _wrong(path, f"feature {name}: expected some finite numbers, got none")
    return features


def _class_count(manifest: Manifest) -> int | None:
    """Return how many classes answers have, -1 for any number, None without classes."""
    if manifest.task.kind != "classification":
        return None
    names = [spec.name for spec in manifest.outputs]
    scores = manifest.outputs[names.index(manifest.task.scores or names[0])]
    width = scores.shape[-1] if scores.shape else -1
    return 2 if manifest.stream is not None and width == 1 else width


def _confidence(path: Path, beside: dict[str, NDArray[np.generic]]) -> Numbers:
    values: Numbers = beside[CONFIDENCE].astype(np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise _wrong(path, "confidence: expected one top score a row, 0 to 1")
    return values


def _numbers_of(
    path: Path, name: str, beside: dict[str, NDArray[np.generic]], classes: int | None
) -> NDArray[np.int64] | None:
    if name not in beside:
        return None
    given = beside[name]
    limit = classes if classes is not None and classes > 0 else 1_000_000
    reals = given.astype(np.float64)
    if given.ndim != 1 or not ((reals >= 0) & (reals < limit) & (reals % 1 == 0)).all():
        raise _wrong(path, f"{name}: expected one class number a row, 0 to {limit - 1}")
    return reals.astype(np.int64)
