"""Baselines and calibration from reference data."""

from pathlib import Path

import numpy as np
import pytest

from fleet.workshop.draft import ReleaseDraft, changed
from fleet.workshop.errors import ArtifactError
from fleet.workshop.inspect import compose_release
from fleet.workshop.reference import feature_baseline, quantile_edges, read_reference
from tests.fleet.workshop.models import dense, written
from wire.task import Column, TableInput, Task

RANDOM = np.random.default_rng(20261124)
ROWS = RANDOM.normal(3, 2, (1000, 4)).astype(np.float32)


@pytest.fixture
def draft(tmp_path: Path) -> ReleaseDraft:
    model = written(tmp_path / "m.onnx", dense())
    return compose_release([model], name="m", version=1, labels=None, golden=None, task=None)


def npz(folder: Path, **arrays: object) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def text(folder: Path, *lines: str) -> Path:
    path = folder / "data.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_small_tensor_has_a_feature_an_element_in_bins_of_equal_counts(
    draft: ReleaseDraft, tmp_path: Path
) -> None:
    baseline = read_reference(npz(tmp_path, x=ROWS), draft.manifest).baseline

    assert baseline.samples == 1000
    assert [each.name for each in baseline.features] == ["x[0]", "x[1]", "x[2]", "x[3]"]
    for each in baseline.features:
        assert len(each.counts) == 20
        assert all(45 <= count <= 55 for count in each.counts)
        assert sum(each.counts) + each.nan + each.outside == 1000


def test_nan_and_infinity_are_counted_apart() -> None:
    values = np.array([1.0, 2.0, np.nan, 3.0, np.inf, 4.0])

    feature = feature_baseline("x[0]", values, quantile_edges(values, 2))

    assert (feature.edges, feature.counts) == ((1.0, 2.5, 4.0), (2, 2))
    assert (feature.nan, feature.outside) == (1, 1)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_bins_keep_their_counts_whatever_the_unit(scale: float) -> None:
    values = RANDOM.random(1000) * scale

    feature = feature_baseline("x[0]", values, quantile_edges(values, 20))

    assert len(feature.counts) == 20 and feature.outside <= 2


def test_a_feature_that_never_varies_has_a_bin_of_its_own() -> None:
    feature = feature_baseline("x[0]", np.full(60, 7.0), quantile_edges(np.full(60, 7.0), 20))

    assert feature.counts == (60,)


def test_answers_beside_the_inputs_make_predicted_classes_and_calibration(
    draft: ReleaseDraft, tmp_path: Path
) -> None:
    confidence = RANDOM.uniform(0.4, 1, 1000)
    predicted = RANDOM.integers(0, 3, 1000)
    label = np.where(RANDOM.random(1000) < confidence, predicted, (predicted + 1) % 3)
    data = npz(tmp_path, x=ROWS, predicted=predicted, confidence=confidence, label=label)

    made = read_reference(data, draft.manifest)

    assert made.baseline.features[-1].name == "confidence"
    assert len(made.baseline.features[-1].counts) == 20
    assert made.baseline.predicted == tuple(np.bincount(predicted).tolist())
    assert all(abs(observed - raw) < 0.2 for raw, observed in made.calibration)
    assert sorted(made.calibration) == list(made.calibration)


def test_a_table_has_its_columns_by_name_with_gaps(draft: ReleaseDraft, tmp_path: Path) -> None:
    columns = tuple(Column(name=name, std=2.0, mean=1.0) for name in ("a", "b", "c", "d"))
    task = Task(kind="classification", scores="y", input=TableInput(name="rows", columns=columns))
    manifest = changed(draft.manifest, task=task)
    lines = [f"{n},{n * 0.5}," if n % 2 else f"{n},,{n}" for n in range(100)]

    baseline = read_reference(text(tmp_path, "a,b,rows.c", *lines), manifest).baseline
    same = read_reference(npz(tmp_path, x=(ROWS - 1) / 2), manifest).baseline

    assert [each.name for each in baseline.features] == ["rows.a", "rows.b", "rows.c"]
    assert [each.nan for each in baseline.features] == [0, 50, 50]
    assert same.features[0].edges[0] == pytest.approx(float(ROWS[:, 0].min()), abs=1e-4)


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ({"x": ROWS[:10]}, "expected at least 50 rows, got 10"),
        ({"x": ROWS[:, :3]}, "x: expected rows of shape (4,) (-1: any), got (3,)"),
        ({"pixels": ROWS}, "pixels: expected one of x, predicted, confidence, label"),
        ({"x": ROWS * np.nan}, "feature x[0]: expected some finite numbers, got none"),
        ({"x": ROWS, "predicted": np.zeros(5, int)}, "expected as many rows of each, got x 1000"),
        ({"x": ROWS, "predicted": np.full(1000, 3)}, "predicted: expected one class number a row"),
        ({"x": ROWS, "confidence": np.full(1000, 1.5)}, "confidence: expected one top score"),
        ({"x": np.array(["a"] * 99)}, "x: expected numbers, a row a sample, got <U1"),
        ({"x": np.array([{}])}, "expected reference data as .npz without objects"),
        ({}, "expected inputs by their names, got nothing"),
    ],
)
def test_data_that_is_not_the_releases_is_refused_with_what_would_be(
    draft: ReleaseDraft, tmp_path: Path, arrays: dict[str, object], error: str
) -> None:
    with pytest.raises(ArtifactError) as refused:
        read_reference(npz(tmp_path, **arrays), draft.manifest)

    assert error in str(refused.value)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["x[0],x[9]", *["1,2"] * 60], "feature x[9]: expected an element of up to 4"),
        (["x[0],y", *["1,2"] * 60], "feature y: expected confidence, or INPUT.mean"),
        (["x[0]", "1", "one"], "line 3: expected numbers, got 'one'"),
        (["x[0],x[1]", "1"], "line 2: expected 2 fields, got 1"),
        (["x[0],x[0]", "1,2"], "expected a first line of up to 4096 names that differ"),
        (["x[0]", *["nan"] * 60], "feature x[0]: expected some finite numbers, got none"),
    ],
)
def test_tables_that_are_not_the_releases_are_refused(
    draft: ReleaseDraft, tmp_path: Path, lines: list[str], error: str
) -> None:
    with pytest.raises(ArtifactError) as refused:
        read_reference(text(tmp_path, *lines), draft.manifest)

    assert error in str(refused.value)
