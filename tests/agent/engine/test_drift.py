"""Live features in a baseline's bins: as NumPy bins them, and whatever the windows are cut into."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control import ModelSpec
from agent.engine.drift import Bins, Drift, means_and_stds
from agent.engine.scoreboard import Scoreboard
from wire.features import LARGEST, STRIDE, measure_of, step
from wire.ids import digest_of
from wire.manifest import (
    Baseline,
    FeatureBaseline,
    File,
    Manifest,
    Quantization,
    TensorSpec,
    Variant,
)
from wire.task import Column, TableInput, Task, TextInput

Array = np.ndarray[Any, Any]
EDGES = (-2.0, -0.5, 0.0, 0.25, 3.0)


def release(
    *features: str,
    task: Task | None = None,
    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="image", datatype="FP32", shape=(-1, 4)),),
    edges: tuple[float, ...] = EDGES,
    every: int | None = None,
) -> Manifest:
    outputs = (TensorSpec(name="scores", datatype="FP32", shape=(-1, 3)),)
    return Manifest(
        model="m",
        version=1,
        task=task or Task(kind="classification", scores="scores"),
        inputs=inputs,
        outputs=outputs,
        variants=(
            Variant(
                name="only",
                format="onnx",
                artifact=File(name="m.onnx", digest=digest_of(b""), size_bytes=0),
                inputs=inputs,
                outputs=outputs,
            ),
        ),
        baseline=Baseline(
            samples=1,
            features=tuple(
                FeatureBaseline(name=name, edges=edges, counts=(0,) * (len(edges) - 1))
                for name in features
            ),
            every=every,
        ),
    )


def drift(manifest: Manifest, phase: int = 0) -> Drift:
    return Drift(manifest, manifest.variants[0], phase)


def test_bins_are_those_of_numpy_with_nan_and_outside_behind_them() -> None:
    values = np.array([*EDGES, *np.nextafter(EDGES, 99), math.nan, math.inf, -math.inf, -7, 9, 0.1])
    bins = Bins(EDGES)

    bins.add(values)

    inside = np.histogram(values[np.isfinite(values)], EDGES)[0].tolist()
    assert bins.take() == [*inside, 1, len(values) - 1 - sum(inside)]
    assert bins.take() == []


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=True, width=32), min_size=1, max_size=200),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_bins_add_up_whatever_the_windows_are_cut_into(
    values: list[float], cuts: list[int]
) -> None:
    every, whole = np.array(values, np.float64), Bins(EDGES)
    whole.add(every)
    total = np.zeros(len(EDGES) + 1, np.int64)
    bins = Bins(EDGES)

    for part in np.split(every, sorted(cut % len(values) for cut in cuts)):
        bins.add(part)
        total += np.array(bins.take() or [0] * len(total))

    assert total.tolist() == whole.take()
    assert total[-2] == np.isnan(every).sum()
    with np.errstate(invalid="ignore"):
        assert total[:-2].tolist() == np.histogram(every[~np.isnan(every)], EDGES)[0].tolist()


def test_elements_of_small_inputs_are_counted_for_every_row() -> None:
    counted = drift(release("image[0]", "image[3]", "confidence"))
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(rows, 4)).astype(np.float32) for rows in (1, 3, 1, 40, 1)]
    tops = [rng.uniform(size=len(each)).tolist() for each in inputs]

    for sample, sure in zip(inputs, tops, strict=True):
        counted.see([sample])
        counted.sure(sure)
    taken = counted.take()

    rows = np.concatenate(inputs).astype(np.float64)
    for number, values in ((0, rows[:, 0]), (1, rows[:, 3]), (2, np.concatenate(tops))):
        inside = np.histogram(values, EDGES)[0].tolist()
        assert taken[number] == [*inside, 0, len(values) - sum(inside)]
    assert counted.take() == {}


def board(manifest: Manifest, now: int = 0) -> Scoreboard:
    spec = ModelSpec("m", 1, manifest.digest, "only", "", {})

    def classify(waiting: list[Array]) -> tuple[Array, Array]:
        rows = np.concatenate(waiting).astype(np.float64)
        return rows.argmax(axis=1), rows.max(axis=1)

    return Scoreboard(spec, now, manifest, classify)


@pytest.mark.parametrize("at_once", [False, True, None], ids=["noted", "answered", "mixed"])
def test_of_large_inputs_one_request_in_eleven_is_measured(at_once: bool | None) -> None:
    spec = TensorSpec(name="image", datatype="FP32", shape=(-1, 8, 8, 3))
    manifest = release("image.mean", "image.std", "confidence", inputs=(spec,))
    counts = board(manifest)
    assert counts._drift is not None
    phase = counts._drift.phase
    rng = np.random.default_rng(2)
    pictures = rng.normal(size=(1100, 8, 8, 3)).astype(np.float32)
    tops = rng.uniform(0.34, 1, size=1100)
    taken: dict[int, Any] = {0: 0, 1: 0, 2: 0}

    for number, (picture, top) in enumerate(zip(pictures, tops, strict=True)):
        if at_once or (at_once is None and number % 3):
            counts.answered(f"r{number}", 1.0, (0,), [float(top)], [picture[None]])
        else:
            scores = np.array([[top, 0, 0]])
            counts.noted(f"r{number}", 1.0, scores, [picture[None]])
        if number in (300, 301, 777):
            for place, found in (window(counts).get("drift") or {}).items():
                taken[place] += np.array(found)
    for place, found in window(counts)["drift"].items():
        taken[place] += np.array(found)

    turn = slice(STRIDE - 1 - phase, None, STRIDE)
    seen = pictures[turn].astype(np.float64).reshape(-1, 192)
    assert [counts.sum() for counts in taken.values()] == [100, 100, 100]
    assert taken[0][:4].tolist() == np.histogram(seen.mean(axis=1), EDGES)[0].tolist()
    assert taken[1][:4].tolist() == np.histogram(seen.std(axis=1), EDGES)[0].tolist()
    assert taken[2][:4].tolist() == np.histogram(tops[turn], EDGES)[0].tolist()


def window(counts: Scoreboard) -> dict[str, Any]:
    taken = counts.take(60, None)
    assert taken is not None
    return taken.counts


def test_what_comes_in_turns_is_seen_from_all_its_sides() -> None:
    for turns in (2, 3, 4, 5, 6, 7, 8, 10, 12, 30):
        assert len({at % turns for at in range(0, STRIDE * turns, STRIDE)}) == turns


def test_a_release_says_itself_how_alike_its_requests_are() -> None:
    counts = board(release("confidence", every=100))
    for number in range(1000):
        counts.answered(str(number), 1.0, (1,), [0.1], [np.zeros((1, 4))])

    assert sum(window(counts)["drift"][0]) == 10


def test_means_of_large_tensors_are_made_of_elements_of_all_channels() -> None:
    picture = np.zeros((480, 640, 3), np.uint8)
    picture[..., 1] = 90
    assert picture.size // step(picture.size) <= LARGEST

    [mean], [std] = means_and_stds(picture.reshape(1, -1)[:, :: step(picture.size)])

    assert (mean, std) == pytest.approx((30, 30 * math.sqrt(2)), rel=0.01)
    halves = Quantization(scale=(0.5,), zero_point=(-1,))
    [mean], [std] = means_and_stds(np.array([[1, 3]], np.int8), halves)
    assert (mean, std) == (1.5, 0.5)


def test_columns_are_counted_in_their_own_unit_and_categories_by_their_place() -> None:
    table = TableInput(
        name="row",
        columns=(
            Column(name="age", mean=40, std=10),
            Column(name="kind", kind="category", categories=("a", "b"), unknown="zero"),
        ),
    )
    task = Task(kind="classification", scores="scores", input=table)
    spec = TensorSpec(name="image", datatype="FP32", shape=(-1, 3))
    manifest = release("row.age", "row.kind", task=task, inputs=(spec,), edges=(-1, 0, 1, 30, 60))
    counted = drift(manifest)

    # Ages 45 and 130; the categories b, a, and one that nobody knows.
    counted.see([np.array([[0.5, 0, 1], [9, 1, 0], [9, 0, 0]], np.float32)])

    assert counted.take() == {0: [0, 0, 0, 1, 0, 2], 1: [1, 1, 1, 0, 0, 0]}


def test_lengths_of_texts_are_counted_as_characters_or_as_what_is_not_padding() -> None:
    texts = TensorSpec(name="text", datatype="BYTES", shape=(-1,))
    words = drift(release("text.length", inputs=(texts,), edges=(0, 5, 10), every=1))
    words.see([np.array(["hello", "you"], object)])
    words.see([np.array(["hello"], object)])

    tokens = TensorSpec(name="ids", datatype="INT32", shape=(-1, 6))
    task = Task(kind="classification", scores="scores", input=TextInput(name="text", head=6, pad=9))
    padded = drift(release("text.length", task=task, inputs=(tokens,), edges=(0, 3, 10)))
    padded.see([np.array([[1, 2, 9, 9, 9, 9]], np.int32)])

    assert sum(words.take()[0]) == 2
    assert padded.take() == {0: [1, 0, 0, 0]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sharpness", "expected confidence, or INPUT.mean"),
        ("other.mean", "of ['image']"),
        ("image.median", "INPUT.std"),
        ("image[4]", "got 4 of 4"),
        ("image.length", "expected an input of texts"),
    ],
)
def test_a_feature_that_nobody_knows_is_left_out_and_said_so(name: str, expected: str) -> None:
    manifest = release(name, "confidence")
    counted = drift(manifest)
    counted.see([np.zeros((1, 4))])
    counted.sure([0.1])

    assert counted.take() == {1: [0, 0, 1, 0, 0, 0]}
    assert len(counted.unknown) == 1 and expected in counted.unknown[0]
    with pytest.raises(ValueError, match="feature"):
        measure_of(name, manifest)


def test_what_waits_to_be_counted_is_bounded() -> None:
    counted = drift(release("image[1]"))
    body = np.zeros((50_000, 4), np.float32)

    for _ in range(40):
        counted.see([body])

    assert sum(counted.take()[0]) <= 40 * 1024
    assert not any(row.waiting for row in counted._rows.values())
