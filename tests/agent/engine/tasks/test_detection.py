"""Raw boxes and scores become detections."""

from typing import Any

import numpy as np
import pytest

from agent.engine.errors import AnswerError
from agent.engine.tasks import Frame
from agent.engine.tasks.anchors import grid
from agent.engine.tasks.detection import Detector, merge, overlap
from wire.manifest import Quantization, TensorSpec
from wire.task import Anchors, Detection, Task

FRAME = Frame(200, 100)


def outputs(anchors: int, classes: int, width: int = 4, **more: Any) -> list[TensorSpec]:
    return [
        TensorSpec(name="boxes", datatype="FP32", shape=(-1, anchors, width), **more),
        TensorSpec(name="scores", datatype="FP32", shape=(-1, anchors, classes), **more),
    ]


def detector(anchors: Any = None, classes: int = 2, **how: Any) -> Detector:
    task = Task(
        kind="detection",
        scores="scores",
        scores_are=how.pop("scores_are", "probabilities"),
        threshold=how.pop("threshold", None),
        detection=Detection(boxes="boxes", **how),
    )
    width = 4 + 2 * how.get("points", 0)
    return Detector(task, outputs(-1, classes, width), anchors, ["cat", "dog"])


def told(found: Detector, boxes: Any, scores: Any, frame: Frame = FRAME) -> list[Any]:
    arrays = [np.array([boxes], np.float32), np.array([scores], np.float32)]
    detections: list[Any] = found.tell(arrays, [frame]).rows[0]["detections"]
    return detections


def test_corners_are_pixels_of_the_picture_and_labels_have_names() -> None:
    found = detector(form="corners")

    answer = told(found, [[0.1, 0.2, 0.5, 0.6]], [[0.1, 0.9]])

    assert answer == [
        {"label": "dog", "class": 1, "score": pytest.approx(0.9), "box": [20, 20, 100, 60]}
    ]


def test_pairs_may_come_with_y_first_and_boxes_in_pixels_of_the_input() -> None:
    found = detector(form="corners", axes="yx", centre_scale=10)

    [answer] = told(found, [[2, 1, 6, 5]], [[0.9, 0.1]])

    assert answer["box"] == [20, 20, 100, 60]


def test_centres_have_sizes_around_them() -> None:
    found = detector(form="centre", centre_scale=10, size_scale=10)

    [answer] = told(found, [[3, 4, 4, 4]], [[0.9, 0.1]])

    assert answer["box"] == [20, 20, 100, 60]


def test_anchored_boxes_are_offsets_in_parts_of_the_anchor() -> None:
    """As in the single shot detector: scaled by 10 and 5, sizes as logarithms."""
    anchors = np.array([[0.3, 0.4, 0.2, 0.4]], np.float32)
    coded = [[0.5 * 10, -0.25 * 10, np.log(2) * 5, np.log(0.5) * 5]]
    found = detector(anchors, form="centre", centre_scale=10, size_scale=5, exponential=True)

    [answer] = told(found, coded, [[0.9, 0.1]])

    # Centre 0.3 + 0.5 x 0.2 = 0.4 and 0.4 - 0.25 x 0.4 = 0.3; sizes 0.4 and 0.2.
    assert answer["box"] == pytest.approx([40, 20, 120, 40], abs=0.01)


def test_key_points_are_counted_from_the_anchor_too() -> None:
    anchors = np.array([[0.5, 0.5, 1, 1]], np.float32)
    found = detector(anchors, form="centre", centre_scale=100, size_scale=100, points=2)

    [answer] = told(found, [[0, 0, 20, 20, 10, -10, 0, 40]], [[0.9, 0]])

    assert answer["box"] == [80, 40, 120, 60]
    assert answer["points"] == [[120, 40], [100, 90]]


def test_logits_are_clipped_and_become_probabilities() -> None:
    found = detector(form="corners", scores_are="logits", clip=4)

    [answer] = told(found, [[0, 0, 1, 1]], [[-1e30, 1e30]])

    assert answer["score"] == pytest.approx(1 / (1 + np.exp(-4)))


def test_quantized_outputs_are_taken_for_the_reals_they_stand_for() -> None:
    task = Task(
        kind="detection", scores="scores", detection=Detection(boxes="boxes", form="corners")
    )
    specs = [
        TensorSpec(name="boxes", datatype="UINT8", shape=(1, 1, 4),
                   quantization=Quantization(scale=(0.01,), zero_point=(0,))),
        TensorSpec(name="scores", datatype="INT8", shape=(1, 1, 2),
                   quantization=Quantization(scale=(1 / 256,), zero_point=(-128,))),
    ]  # fmt: skip
    found = Detector(task, specs, None, ["cat", "dog"])
    arrays = [np.array([[[10, 20, 50, 60]]], np.uint8), np.array([[[-128, 64]]], np.int8)]

    [answer] = found.tell(arrays, [FRAME]).rows[0]["detections"]

    assert answer["box"] == pytest.approx([20, 20, 100, 60], abs=0.01)
    assert answer["score"] == 0.75
    assert found.leading(arrays) == ((1,), [0.75])


def test_the_background_is_no_object() -> None:
    found = detector(form="corners", classes=3, background=True)

    answer = told(found, [[0, 0, 1, 1], [0, 0, 0.5, 0.5]], [[0.95, 0.02, 0.03], [0.1, 0.2, 0.7]])

    assert [(each["label"], each["class"]) for each in answer] == [("dog", 1)]


def test_boxes_may_come_with_their_class_beside_them() -> None:
    task = Task(
        kind="detection",
        scores="scores",
        detection=Detection(boxes="boxes", form="corners", axes="yx", classes="classes"),
    )
    names = {"boxes": (1, 3, 4), "classes": (1, 3), "scores": (1, 3), "count": (1,)}
    specs = [TensorSpec(name=n, datatype="FP32", shape=s) for n, s in names.items()]
    found = Detector(task, specs, None, ["cat", "dog"])
    arrays = [
        np.array([[[0, 0, 1, 0.5], [0, 0.5, 1, 1], [0, 0, 1, 1]]], np.float32),
        np.array([[1, 0, 1]], np.float32),
        np.array([[0.8, 0.7, 0.2]], np.float32),
        np.array([2], np.float32),
    ]

    answer = found.tell(arrays, [FRAME]).rows[0]["detections"]

    assert [(each["label"], each["box"]) for each in answer] == [
        ("dog", [0, 0, 100, 100]), ("cat", [100, 0, 200, 100]),
    ]  # fmt: skip
    assert found.leading(arrays) == ((1,), [pytest.approx(0.8)])


def test_nothing_found_is_a_class_of_its_own() -> None:
    found = detector(form="corners")
    arrays = [np.zeros((2, 1, 4), np.float32), np.array([[[0.2, 0.1]], [[0.1, 0.6]]], np.float32)]

    classes, tops = found.leading(arrays)

    assert classes == (2, 1)
    assert tops == [pytest.approx(0.8), pytest.approx(0.6)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_an_error_and_such_boxes_are_left_out(bad: float) -> None:
    found = detector(form="corners")

    assert told(found, [[0, 0, bad, 1], [0.5, 0.5, 0.2, 0.9]], [[0.9, 0], [0.9, 0]]) == []
    if not np.isneginf(bad):
        with pytest.raises(AnswerError):
            found.leading([np.zeros((1, 1, 4)), np.array([[[bad, 0.0]]])])


def test_a_model_may_answer_no_boxes_at_all() -> None:
    found = detector(form="corners")
    arrays = [np.zeros((1, 0, 4), np.float32), np.zeros((1, 0, 2), np.float32)]

    assert found.leading(arrays) == ((2,), [1.0])
    assert found.tell(arrays, [FRAME]).rows[0]["detections"] == []


@pytest.mark.parametrize("number", [-1, 2, 1e30, np.nan])
def test_a_class_that_there_is_not_is_nothing(number: float) -> None:
    task = Task(
        kind="detection",
        scores="scores",
        detection=Detection(boxes="boxes", form="corners", classes="classes"),
    )
    names = {"boxes": (1, 1, 4), "classes": (1, 1), "scores": (1, 1)}
    specs = [TensorSpec(name=n, datatype="FP32", shape=s) for n, s in names.items()]
    found = Detector(task, specs, None, ["cat", "dog"])
    arrays = [
        np.array([[[0, 0, 1, 1]]], np.float32),
        np.array([[number]], np.float32),
        np.array([[0.8]], np.float32),
    ]

    assert found.leading(arrays)[0] == (2,)
    assert found.tell(arrays, [FRAME]).rows[0]["detections"] == []


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_logits_are_judged_as_their_probabilities_are(threshold: float) -> None:
    logits = np.random.default_rng(4).normal(0, 6, (200, 2)).astype(np.float32)
    boxes = [[place / 200, 0, (place + 0.5) / 200, 1] for place in range(200)]
    how = {"form": "corners", "threshold": threshold, "candidates": 400, "most": 400}
    shares = 1 / (1 + np.exp(-logits))

    ours = told(detector(scores_are="logits", **how), boxes, logits)
    theirs = told(detector(**how), boxes, shares)

    assert len(ours) == (shares >= threshold).sum()
    assert [each["box"] for each in ours] == [each["box"] for each in theirs]


def boxes_of(*corners: list[float]) -> Any:
    return np.array(corners, np.float64).reshape(-1, 2, 2)


def test_overlap_is_the_shared_part_of_the_union() -> None:
    boxes = boxes_of([0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 1, 1])

    shares = overlap(boxes[0], boxes)

    assert shares.tolist() == pytest.approx([1, 1 / 3, 0, 1 / 4])


def test_overlapping_boxes_of_a_class_are_averaged_by_their_scores() -> None:
    boxes = boxes_of([0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60])
    scores = np.array([0.9, 0.6, 0.5])

    merged, kept, _ = merge(Detection(boxes="b"), boxes, scores, np.zeros(3, int))

    np.testing.assert_allclose(merged, [[[0.4, 0.4], [10.4, 10.4]], [[50, 50], [60, 60]]])
    assert kept.tolist() == [0.9, 0.5]


def test_the_best_box_alone_stays_where_the_release_says_so() -> None:
    boxes = boxes_of([0, 0, 10, 10], [1, 1, 11, 11])

    merged, _, _ = merge(
        Detection(boxes="b", merge="best"), boxes, np.array([0.9, 0.6]), np.zeros(2, int)
    )

    assert merged.tolist() == [[[0, 0], [10, 10]]]


def test_classes_do_not_suppress_each_other_and_no_more_than_asked_for_is_kept() -> None:
    boxes = boxes_of(*[[0, 0, 10, 10]] * 4)
    scores = np.array([0.9, 0.8, 0.7, 0.6])

    _, _, classes = merge(Detection(boxes="b"), boxes, scores, np.array([1, 0, 1, 2]))
    _, few, _ = merge(Detection(boxes="b", most=2), boxes, scores, np.array([1, 0, 1, 2]))

    assert classes.tolist() == [1, 0, 2]
    assert few.tolist() == [0.9, 0.8]


def test_a_flood_of_boxes_is_cut_to_the_best_candidates() -> None:
    chance = np.random.default_rng(5)
    boxes = np.sort(chance.random((20_000, 2, 2)), axis=1).reshape(-1, 4)
    scores = chance.uniform(0.5, 1, (20_000, 2))
    found = detector(form="corners", candidates=200, overlap=1.0, most=1000)

    answer = told(found, boxes, scores)

    assert len(answer) == 200
    assert answer[-1]["score"] > 0.99


def test_the_grid_is_the_one_that_face_detectors_were_trained_with() -> None:
    given = Anchors(strides=(8, 16, 16, 16), interpolated_aspect_ratio=1.0, fixed_size=True)

    anchors = grid(given, 128, 128)

    assert anchors.shape == (896, 4) == (given.count(128, 128), 4)
    assert anchors[0].tolist() == anchors[1].tolist() == [0.03125, 0.03125, 1, 1]
    assert anchors[2].tolist() == [0.09375, 0.03125, 1, 1]
    assert (anchors[512:518] == anchors[512]).all()
    assert anchors[512, :2].tolist() == [0.0625, 0.0625]
    assert anchors[-1, :2].tolist() == [0.9375, 0.9375]


def test_sizes_of_anchors_rise_from_layer_to_layer() -> None:
    """The six layers of a single shot detector on 300 pixels."""
    given = Anchors(
        strides=(16, 32, 64, 128, 256, 512),
        min_scale=0.2,
        max_scale=0.95,
        aspect_ratios=(1.0, 2.0, 0.5),
        interpolated_aspect_ratio=1.0,
    )

    anchors = grid(given, 300, 300)

    assert len(anchors) == given.count(300, 300) == 4 * (19**2 + 10**2 + 5**2 + 3**2 + 2**2 + 1)
    assert anchors[0, 2:].tolist() == pytest.approx([0.2, 0.2])
    assert anchors[1, 2:].tolist() == pytest.approx([0.2 * 2**0.5, 0.2 / 2**0.5])
    assert anchors[3, 2:].tolist() == pytest.approx([(0.2 * 0.35) ** 0.5] * 2)
    assert anchors[-1, 2:].tolist() == pytest.approx([0.95**0.5] * 2)
