"""Raw boxes and scores to detections: decoded, thresholded, merged, and placed on the picture."""

import math
from typing import Any

import numpy as np

from agent.engine.errors import AnswerError
from agent.engine.runtimes import Array
from agent.engine.tasks import Frame, Told, output, texts
from agent.engine.tasks.classes import name_classes
from agent.engine.tasks.edges import to_reals
from wire.manifest import TensorSpec
from wire.task import Detection, Task

Box = tuple[int, float, float, float, float]
"""Class, first and last corner: x and y each, in pixels of the picture."""

THRESHOLD = 0.5
NOTHING = "nothing"
"""The class of a picture in which nothing was found; numbered after all others."""


class Detector:
    """Reads one model's boxes and scores.

    `outputs` are the manifest's, with the quantization of the variant; `anchors` FP32 (n, 4) or
    None where the boxes stand for themselves.
    """

    def __init__(
        self, task: Task, outputs: list[TensorSpec], anchors: Array | None, labels: list[str]
    ) -> None:
        assert task.detection is not None
        names = [spec.name for spec in outputs]
        self._task = task
        self._how: Detection = task.detection
        self._specs = outputs
        self._boxes = names.index(self._how.boxes)
        self._scores = names.index(task.scores or "")
        self._classes = None if self._how.classes is None else names.index(self._how.classes)
        self._anchors = anchors
        self._labels = labels
        self._threshold = THRESHOLD if task.threshold is None else task.threshold
        self._least = self._threshold
        if task.scores_are == "logits":
            self._least = _logit(self._threshold)
        shape = outputs[self._scores].shape
        made = shape[-1] - self._how.background if shape else 0
        self.classes = len(labels) if self._classes is not None or made < 1 else made
        """How many kinds of objects there are, and the number that stands for nothing."""
        self.outputs: tuple[TensorSpec, ...] = (
            output("boxes", "FP32", -1, 4),
            output("scores", "FP32", -1),
            output("classes", "INT64", -1),
            output("labels", "BYTES", -1),
            output("images", "INT64", -1),
        )
        if self._how.points:
            self.outputs += (output("points", "FP32", -1, self._how.points, 2),)

    def leading(self, outputs: list[Array]) -> tuple[tuple[int, ...], list[float]]:
        """Return for every picture the class of its best detection, or of nothing, and its score.

        Raises:
            AnswerError: a score is not finite.
        """
        scores = self._raw_scores(outputs)
        if scores.size == 0:
            return (self.classes,) * len(scores), [1.0] * len(scores)
        flat = scores.reshape(len(scores), -1)
        best = flat.argmax(axis=1)
        pictures = np.arange(len(flat))
        tops = self._shares(flat[pictures, best])
        classes = self._class_numbers(outputs, pictures, *np.divmod(best, scores.shape[-1]))
        found = tops >= self._threshold
        winners = np.where(found, classes, self.classes)
        return tuple(winners.tolist()), np.where(found, tops, 1 - tops).tolist()

    def tell(self, outputs: list[Array], frames: list[Frame]) -> Told:
        """Return the detections of all pictures, best first, boxes in pixels of the pictures."""
        scores = self._raw_scores(outputs)
        boxes = to_reals(outputs[self._boxes], self._specs[self._boxes])
        self._check_counts(boxes, scores)
        parts = [
            self._detect(place, scores[place], boxes[place], outputs, frame)
            for place, frame in enumerate(frames)
        ]
        rows = [self._row(frame, *part) for frame, part in zip(frames, parts, strict=True)]
        images = np.repeat(np.arange(len(parts)), [len(part[1]) for part in parts])
        shapes, kept, classes = (np.concatenate(column) for column in zip(*parts, strict=True))
        names = name_classes(classes.tolist(), self._labels, self._task)
        tensors = [
            shapes[:, :2].reshape(-1, 4).astype(np.float32),
            kept.astype(np.float32),
            classes,
            texts(names),
            images,
        ]
        if self._how.points:
            tensors.append(shapes[:, 2:].astype(np.float32))
        return Told(tensors, rows)

    def _check_counts(self, boxes: Array, scores: Array) -> None:
        """Refuse outputs whose variable dimensions came out otherwise than the task expects."""
        width = 4 + 2 * self._how.points
        counts = {scores.shape[1:2], boxes.shape[1:2]}
        if self._anchors is not None:
            counts.add((len(self._anchors),))
        if len(counts) != 1 or boxes.shape[2:] != (width,) or scores.ndim != 3:
            raise AnswerError(
                f"the model's boxes {list(boxes.shape)}, scores {list(scores.shape)} and "
                f"{'no' if self._anchors is None else len(self._anchors)} anchors do not go "
                f"together; expected as many of each, and boxes of {width} numbers"
            )

    def _raw_scores(self, outputs: list[Array]) -> Array:
        """Return scores or logits, FP32 (batch, anchors, classes), without the background."""
        scores = to_reals(outputs[self._scores], self._specs[self._scores])
        if not np.isfinite(scores).all():
            raise AnswerError("the model's scores are not finite")
        if self._classes is not None:
            scores = scores[..., None]
        return scores[..., 1:] if self._how.background else scores

    def _shares(self, scores: Array) -> Array:
        """Return scores from 0 to 1."""
        if self._task.scores_are == "probabilities":
            return scores
        if self._how.clip is not None:
            scores = scores.clip(-self._how.clip, self._how.clip)
        with np.errstate(over="ignore"):
            shares: Array = 1 / (1 + np.exp(-scores))
        return shares

    def _class_numbers(
        self, outputs: list[Array], pictures: Array, anchors: Array, columns: Array
    ) -> Array:
        """Return the classes of some boxes; what is none counts as nothing."""
        if self._classes is None:
            return columns
        numbers = outputs[self._classes][pictures, anchors]
        known = (numbers >= 0) & (numbers < self.classes)
        return np.where(known, numbers, self.classes).astype(np.int64)

    def _detect(
        self, place: int, scores: Array, boxes: Array, outputs: list[Array], frame: Frame
    ) -> tuple[Array, Array, Array]:
        """Return shapes (n, 2 + points, 2), scores (n) and classes (n) of one picture."""
        # Millions of logits are compared as they are: few are worth an exponential.
        anchors, columns = np.nonzero(scores >= self._least)
        kept = self._shares(scores[anchors, columns])
        order = _highest(kept, self._how.candidates)
        order = order[kept[order] >= self._threshold]
        anchors, columns, kept = anchors[order], columns[order], kept[order]
        classes = self._class_numbers(outputs, np.full(len(anchors), place), anchors, columns)
        shapes = decode(self._how, boxes[anchors], self._anchors, anchors)
        sound = np.isfinite(shapes).all(axis=(1, 2)) & (shapes[:, 1] > shapes[:, 0]).all(axis=1)
        sound &= classes < self.classes
        shapes, kept, classes = merge(self._how, shapes[sound], kept[sound], classes[sound])
        shapes = frame.on_picture(shapes)
        shapes[:, :2] = shapes[:, :2].clip(0, (frame.width, frame.height))
        return shapes, kept, classes

    def _row(self, frame: Frame, shapes: Array, scores: Array, classes: Array) -> dict[str, Any]:
        names = name_classes(classes.tolist(), self._labels, self._task)
        detections = []
        for name, number, score, shape in zip(
            names, classes.tolist(), scores.tolist(), shapes.round(2).tolist(), strict=True
        ):
            detection = {"label": name, "class": number, "score": score,
                         "box": [*shape[0], *shape[1]]}  # fmt: skip
            if self._how.points:
                detection["points"] = shape[2:]
            detections.append(detection)
        return {"width": frame.width, "height": frame.height, "detections": detections}


def boxes_of(told: Told) -> list[list[Box]]:
    """Return what was told of every picture as boxes, best first."""
    return [[(each["class"], *each["box"]) for each in row["detections"]] for row in told.rows]


def _logit(share: float) -> float:
    """Return what the logistic function makes `share` of; a little less, as FP32 rounds."""
    if share in (0, 1):
        return -math.inf if share == 0 else 15.0
    return math.log(share / (1 - share)) - 1e-3


def _highest(scores: Array, count: int) -> Array:
    """Return the places of the `count` highest scores, the highest first."""
    places = np.arange(len(scores))
    if len(scores) > count:
        places = np.sort(np.argpartition(scores, -count)[-count:])
    order: Array = places[np.argsort(-scores[places], kind="stable")]
    return order


def decode(how: Detection, coded: Array, anchors: Array | None, places: Array) -> Array:
    """Return corners and points (n, 2 + points, 2), x first, as shares of the input.

    `coded` (n, 4 + 2 x points) belongs to the anchors at `places`.
    """
    pairs = coded.reshape(len(coded), coded.shape[1] // 2, 2).astype(np.float64)
    if how.axes == "yx":
        pairs = pairs[..., ::-1]
    shapes: Array = pairs / how.centre_scale
    if how.form == "corners":
        return shapes
    # What cannot be a box is left out afterwards.
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = pairs[:, 1] / how.size_scale
        if how.exponential:
            sizes = np.exp(sizes)
        if anchors is not None:
            base = anchors[places]
            sizes = sizes * base[:, 2:]
            shapes = shapes * base[:, None, 2:] + base[:, None, :2]
        centres = shapes[:, 0].copy()
        shapes[:, 0] = centres - sizes / 2
        shapes[:, 1] = centres + sizes / 2
    return shapes


def merge(
    how: Detection, shapes: Array, scores: Array, classes: Array
) -> tuple[Array, Array, Array]:
    """Return one detection for those of a class that overlap; best first before and after.

    Weighted: their shapes are averaged by score, and the best score stands for all.

    Source: Bazarevsky et al. 2019, "BlazeFace", 3 (blending in place of suppression).
    """
    left = np.arange(len(scores))
    found: list[Array] = []
    best: list[int] = []
    while len(left) and len(found) < how.most:
        first = left[0]
        same = (classes[left] == classes[first]) & (
            overlap(shapes[first, :2], shapes[left, :2]) > how.overlap
        )
        same[0] = True
        group = left[same]
        if how.merge == "weighted":
            weights = scores[group].astype(np.float64)
            found.append(np.tensordot(weights / weights.sum(), shapes[group], axes=1))
        else:
            found.append(shapes[first])
        best.append(first)
        left = left[~same]
    merged = np.array(found).reshape(-1, *shapes.shape[1:])
    return merged, scores[best], classes[best]


def overlap(box: Array, boxes: Array) -> Array:
    """Return the shares of their union that one box (2, 2) and each of many (n, 2, 2) share."""
    inner = np.minimum(box[1], boxes[:, 1]) - np.maximum(box[0], boxes[:, 0])
    shared = inner.clip(0).prod(axis=1)
    union = (box[1] - box[0]).prod() + (boxes[:, 1] - boxes[:, 0]).prod(axis=1) - shared
    shares: Array = shared / union
    return shares
