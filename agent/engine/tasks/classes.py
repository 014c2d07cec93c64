"""Scores to the classes that an app wants to read of."""

from typing import Any

import numpy as np

from agent.engine.errors import AnswerError
from agent.engine.runtimes import Array
from agent.engine.tasks import Frame, Told, output, texts
from agent.engine.tasks.edges import to_reals
from wire.manifest import TensorSpec
from wire.task import Task

TOP = 5


class Classifier:
    """Names the classes with the best scores, as probabilities, best first."""

    def __init__(self, task: Task, place: int, spec: TensorSpec, labels: list[str]) -> None:
        self._task = task
        self._place = place
        self._spec = spec
        self._labels = labels
        self._top = task.top or TOP
        classes, batch = spec.shape[-1], spec.shape[0] if len(spec.shape) > 1 else 1
        top = self._top if classes == -1 else min(self._top, classes)
        self.outputs: tuple[TensorSpec, ...] = (
            output("label", "BYTES", batch, top),
            output("class", "INT64", batch, top),
            output("score", "FP32", batch, top),
        )

    def tell(self, outputs: list[Array], frames: list[Frame]) -> Told:
        """Return label, class and score, (batch, top); below the threshold "", -1 and 0."""
        shares = self._probabilities(outputs[self._place])
        top = min(self._top, shares.shape[1])
        order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
        scores = np.take_along_axis(shares, order, axis=1).astype(np.float32)
        kept = scores >= (self._task.threshold or 0.0)
        names = name_classes(order.ravel().tolist(), self._labels, self._task)
        labels = texts(names).reshape(order.shape)
        rows: list[dict[str, Any]] = [
            {
                "labels": [
                    {"label": label, "class": number, "score": score}
                    for label, number, score, keep in zip(*columns, strict=True)
                    if keep
                ]
            }
            for columns in zip(
                labels.tolist(), order.tolist(), scores.tolist(), kept.tolist(), strict=True
            )
        ]
        tensors = [
            np.where(kept, labels, ""),
            np.where(kept, order, -1),
            np.where(kept, scores, np.float32(0)),
        ]
        return Told(tensors, rows)

    def _probabilities(self, scores: Array) -> Array:
        reals = to_reals(scores.reshape(-1, scores.shape[-1]), self._spec)
        if not np.isfinite(reals).all():
            raise AnswerError("the model's scores are not finite")
        if self._task.scores_are == "probabilities":
            return reals
        powers = np.exp(reals - reals.max(axis=1, keepdims=True))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
        return shares


def name_classes(numbers: list[int], labels: list[str], task: Task) -> list[str]:
    """Return what answers call these classes: label, as mapped, or the number itself."""
    renamed = task.label_map or {}
    names = [labels[n] if 0 <= n < len(labels) else str(n) for n in numbers]
    return [renamed.get(name, name) for name in names]
