"""What a model answered, how fast and how rightly, as counts since the last report."""

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.control import ModelSpec, Window
from agent.engine.comparison import Boxes, Outcome, Sight
from agent.engine.drift import Drift
from agent.engine.judging import IOU, BoxJudge, Matches
from agent.engine.memories import Memories
from agent.engine.runtimes import Array
from agent.engine.values import Values
from wire.manifest import Manifest
from wire.telemetry import CONFIDENCE_BINS, LATENCY_ERROR, MILLION

if TYPE_CHECKING:
    from agent.engine.privacy import ClassCounts

MAX_CONFUSED = 2048
"""Kinds of confusion counted in one window; `labelled` and `correct` count them all."""


MAX_UNCOUNTED = 256
"""Answers that wait to be counted: many at a time cost less than each on its own."""

MAX_NUMBERS = 2 * MAX_UNCOUNTED
"""Latencies and scores that wait after that."""

SMALL_BYTES = 4096
"""Of inputs that are kept until then."""

Classify = Callable[[list[Array]], tuple[Array, Array]]
"""Scores of many requests, one row each -> the class of each and its score, FP64."""

LOG_GAMMA = math.log((1 + LATENCY_ERROR) / (1 - LATENCY_ERROR))

NO_INPUTS: list[Array] = []


class UnknownRequestError(Exception):
    """No such request is remembered, or not any more."""


class LabelError(ValueError):
    """The labels do not fit the request; the message says why."""


class Scoreboard:
    """Counts of one model. Labels join by request id, once each."""

    def __init__(
        self,
        spec: ModelSpec,
        now: int,
        manifest: Manifest | None = None,
        classify: Classify | None = None,
    ) -> None:
        """Begin; the manifest says what is counted beside classes and times."""
        self._spec = spec
        self._start = now
        self._classify = classify
        self._remembered = Memories()
        task = manifest.task if manifest is not None else None
        self.values = Values(task.tolerance if task is not None else None)
        """True values of answers that have no classes."""
        self._boxes = BoxJudge(task.iou or IOU if task is not None else IOU)
        budget = manifest.budget if manifest is not None else None
        limit_ms = budget.latency_ms if budget is not None else None
        self._slow_us = float("inf") if limit_ms is None else limit_ms * 1000
        points = sorted(manifest.calibration) if manifest is not None else []
        self._calibrated: tuple[list[float], list[float]] | None = None
        if points:
            self._calibrated = [point[0] for point in points], [point[1] for point in points]
        self._drift: Drift | None = None
        self.notes: list[str] = []
        """What the manifest asks for in vain, for the log."""
        if manifest is not None and manifest.baseline is not None:
            # Devices of a fleet must not all look at the same of what they all see.
            phase = zlib.crc32(f"{spec.manifest} {now}".encode())
            drift = Drift(manifest, manifest.variant(spec.variant), phase)
            self.notes = [f"{manifest.ref}: {line}" for line in drift.unknown]
            self._drift = drift if drift else None
        self._guard: ClassCounts | None = None
        self._uncounted: list[tuple[str, float, Array]] = []
        self._sample_at = 0 if self._drift is None else self._drift.stride - self._drift.phase
        """How many will have been noted when the next one comes whose features are counted."""
        self._set_alarm()
        self._sampled: list[int] = []
        """Which of those that were noted are."""
        self._inputs: list[Array] = []
        """Of those, as far as they are small."""
        self._latencies: list[float] = []
        self._tops: list[float] = []
        """Both of requests that were classified and wait to be counted."""
        self._before = 0
        """Requests that were taken already."""
        self._unheard: dict[str, float] = {}
        """Parts of a second, for the next time."""
        self._clear()

    def guard(self, classes: "ClassCounts") -> None:
        """Tell of classes with noise alone from now on."""
        self._guard = classes
        self.notes += classes.notes

    def _clear(self) -> None:
        self._requests = 0
        self._errors = 0
        self._drops = 0
        self._slow = 0
        self._orphan_labels = 0
        self._labelled = 0
        self._correct = 0
        self._latency: dict[int, int] = {}
        self._predicted: dict[int, int] = {}
        self._confusion: dict[str, int] = {}
        self._confidence = np.zeros(CONFIDENCE_BINS, np.int64)
        self._confidence_sum = 0
        self._estimate = [0, 0, 0]
        self._calibration: dict[int, list[int]] = {}
        self._outcomes: dict[str, int] = {}
        self._golden: dict[str, int] = {}

    @property
    def activity(self) -> int:
        """How many requests came since the beginning: who waits for a quiet moment compares."""
        return self._before + self._requests + self._drops + len(self._uncounted)

    def answered(
        self,
        id: str,
        latency_us: float,
        classes: tuple[int, ...],
        tops: list[float],
        inputs: list[Array] = NO_INPUTS,
        *,
        found: Boxes | None = None,
    ) -> Outcome:
        """Count an answer: a request is one, and so is each of its rows as a prediction.

        `found` are the boxes that an app was told of.
        """
        outcome = Outcome(id, classes, tops)
        if found is not None:
            outcome.sight = Sight(found)
        self._requests += 1
        self._latencies.append(latency_us)
        if self._is_sampled() and self._drift is not None:
            self._drift.see(inputs)
            self._drift.sure(tops)
        for winner in classes:
            _add(self._predicted, winner)
        if classes:
            self._tops += tops
            self._remembered.add(outcome)
        if len(self._latencies) >= MAX_NUMBERS or len(self._tops) >= MAX_NUMBERS:
            self._count_numbers()
        return outcome

    def noted(self, id: str, latency_us: float, scores: Array, inputs: list[Array]) -> None:
        """Count an answer of one row, and classify it, when there are many of them."""
        uncounted = self._uncounted
        uncounted.append((id, latency_us, scores))
        if len(uncounted) == self._wake_at:
            self._wake(inputs)

    def _wake(self, inputs: list[Array]) -> None:
        """Sample what was noted last, or count all that was, or both."""
        noted = len(self._uncounted)
        if noted == self._sample_at and self._drift is not None:
            self._sample_at += self._drift.stride
            self._sampled.append(noted - 1)
            if len(inputs) == 1 and inputs[0].nbytes <= SMALL_BYTES:
                self._inputs.append(inputs[0].copy())
            else:
                self._drift.see(inputs)
        if noted == MAX_UNCOUNTED:
            self._count()
        self._set_alarm()

    def _set_alarm(self) -> None:
        sampled = self._sample_at if self._drift is not None else MAX_UNCOUNTED
        self._wake_at = min(sampled, MAX_UNCOUNTED)

    def _is_sampled(self) -> bool:
        """Whether a request that is not noted is one whose features are counted."""
        if self._drift is None:
            return False
        found = self._sample_at == len(self._uncounted) + 1
        self._sample_at += self._drift.stride - 1 if found else -1
        self._set_alarm()
        return found

    def _count(self) -> None:
        """Catch up with what was noted: to be done before anything else is asked or told here."""
        if not self._uncounted or self._classify is None:
            return
        ids, latencies, waiting = zip(*self._uncounted, strict=True)
        classes, tops = self._classify(list(waiting))
        listed: list[float] = tops.tolist()
        if self._drift is not None and self._sampled:
            self._drift.sure([listed[place] for place in self._sampled])
            if self._inputs:
                self._drift.see_many(self._inputs)
        for winner, count in enumerate(np.bincount(classes).tolist()):
            if count:
                self._predicted[winner] = self._predicted.get(winner, 0) + count
        self._remembered.add_many(ids, classes.tolist(), listed)
        self._requests += len(ids)
        self._uncounted.clear()
        self._sample_at -= len(ids)
        self._set_alarm()
        self._sampled.clear()
        self._inputs.clear()
        self._latencies += latencies
        self._tops += listed
        if len(self._tops) >= MAX_NUMBERS:
            self._count_numbers()

    def _count_numbers(self) -> None:
        """Catch up with latencies and top scores."""
        if self._latencies:
            waited = np.array(self._latencies, np.float64)
            self._latencies.clear()
            self._slow += int(np.count_nonzero(waited > self._slow_us))
            # As `Histogram.bin_of`.
            places = np.ceil(np.log(np.maximum(waited, 1.0)) / LOG_GAMMA).astype(np.int64)
            for place, count in enumerate(np.bincount(places).tolist()):
                if count:
                    self._latency[place] = self._latency.get(place, 0) + count
        if not self._tops:
            return
        tops = np.array(self._tops, np.float64)
        self._tops.clear()
        places = np.minimum((tops * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
        self._confidence += np.bincount(np.maximum(places, 0), minlength=CONFIDENCE_BINS)
        # Each is rounded by itself, so that sums do not depend on how windows were cut.
        self._confidence_sum += _millionths(tops)
        if self._calibrated is not None:
            sure = np.interp(tops, self._calibrated[0], self._calibrated[1])
            estimate = self._estimate
            estimate[0] += len(tops)
            estimate[1] += _millionths(sure)
            estimate[2] += _millionths(sure * (1 - sure))

    def failed(self) -> None:
        """Count a request that the model could not answer."""
        self._requests += 1
        self._errors += 1

    def dropped(self) -> None:
        """Count a request that found no room in the queue."""
        self._drops += 1

    def heard(self, frame_s: float, frames: int, accepts: int) -> None:
        """Count what a stream listened to, and how often it began to say yes."""
        self._add_seconds("listened_s", frames * frame_s)
        _add(self._outcomes, "accepts", accepts)

    def rehearsed(self, counts: dict[str, int]) -> None:
        """Count golden samples that were run again."""
        for name, count in counts.items():
            _add(self._golden, name, count)

    def label(self, id: str, labels: tuple[int, ...], frame_s: float | None = None) -> None:
        """Join the true classes of a request's rows to its answer.

        `frame_s` is how long a row of a stream is that says yes or no.

        Raises:
            UnknownRequestError: the request is not remembered; counted as an orphan.
            LabelError: of another number, or there are some already.
        """
        self._count()
        outcome = self._remembered.find(id)
        if outcome is None:
            self._orphan_labels += len(labels)
            raise UnknownRequestError(id)
        if outcome.labels is not None:
            raise LabelError(f"request {id}: expected one label, got another after the first")
        if len(labels) != len(outcome.classes):
            raise LabelError(
                f"request {id}: expected {len(outcome.classes)} labels, got {len(labels)}"
            )
        outcome.labels = labels
        for true, predicted in zip(labels, outcome.classes, strict=True):
            self._labelled += 1
            self._correct += true == predicted
            key = f"{true},{predicted}"
            if key in self._confusion or len(self._confusion) < MAX_CONFUSED:
                _add(self._confusion, key)
        for true, predicted, top in zip(labels, outcome.classes, outcome.tops, strict=False):
            place = max(0, min(CONFIDENCE_BINS - 1, int(top * CONFIDENCE_BINS)))
            sums = self._calibration.setdefault(place, [0, 0, 0])
            sums[0] += 1
            sums[1] += round(max(0.0, min(1.0, top)) * MILLION)
            sums[2] += true == predicted
        if frame_s is not None:
            self._add_seconds("labelled_s", len(labels) * frame_s)
            wrong = [not any(labels[first : last + 1]) for first, last in outcome.accepts]
            _add(self._outcomes, "false_accepts", sum(wrong))
        if outcome.comparison is not None:
            outcome.comparison.labelled(outcome)

    def label_boxes(self, id: str, true: Boxes) -> Matches:
        """Join the true boxes of a request's pictures to those that were found; count the matches.

        Raises:
            UnknownRequestError: the request is not remembered; counted as an orphan.
            LabelError: it was answered without boxes, of another number of pictures, or told twice.
        """
        self._count()
        outcome = self._remembered.find(id)
        if outcome is None:
            self._orphan_labels += len(true)
            raise UnknownRequestError(id)
        sight = outcome.sight
        if sight is None:
            raise LabelError(
                f"request {id}: boxes: expected a request that was sent as pictures, got tensors; "
                "post a label"
            )
        if sight.true is not None:
            raise LabelError(f"request {id}: expected boxes once, got others after the first")
        if len(true) != len(sight.found):
            raise LabelError(
                f"request {id}: expected boxes of {len(sight.found)} pictures, got {len(true)}"
            )
        sight.true = true
        every = [self._boxes.match(*pair) for pair in zip(sight.found, true, strict=True)]
        told = Matches(
            sum(each.matched for each in every),
            sum(each.missed for each in every),
            sum(each.spurious for each in every),
        )
        for name in ("matched", "missed", "spurious"):
            _add(self._outcomes, name, getattr(told, name))
        if outcome.comparison is not None:
            outcome.comparison.labelled(outcome)
        return told

    def remembers(self, id: str) -> bool:
        """Whether a label for this request would find it."""
        self._count()
        return self._remembered.find(id) is not None or self.values.remembers(id)

    def take(self, now: int, shadow: dict[str, Any] | None, *, last: bool = False) -> Window | None:
        """Return the counts since the last time, or None if nothing happened; start anew.

        `last`: this engine ends.
        """
        self._count()
        self._count_numbers()
        counts: dict[str, Any] = {
            "requests": self._requests,
            "errors": self._errors,
            "drops": self._drops,
            "latency": self._latency,
            "predicted": self._predicted,
            "confidence": {
                place: count for place, count in enumerate(self._confidence.tolist()) if count
            },
            "labelled": self._labelled,
            "correct": self._correct,
            "confusion": self._confusion,
            "orphan_labels": self._orphan_labels,
        }
        counts |= {name: given for name, given in self._more().items() if given}
        guarded = {} if self._guard is None else self._guard.hide(counts, now, last=last)
        if shadow is not None:
            counts["shadow"] = shadow
        elif not any(counts.values()) and not guarded.get("noised"):
            return None
        counts |= guarded
        spec = self._spec
        window = Window(
            spec.model, spec.version, spec.manifest, spec.variant, self._start, now, counts
        )
        self._start = now
        self._before += self._requests + self._drops
        self._clear()
        return window

    def _more(self) -> dict[str, Any]:
        """Return the counts that are left out where there are none."""
        errors = self.values.take()
        outcomes = {**self._outcomes, **self.values.take_outcomes()}
        samples, sure, spread = self._estimate
        return {
            "value_errors": {"bins": errors} if errors else None,
            "confidence_sum": self._confidence_sum,
            "calibration": self._calibration,
            "estimate": {"samples": samples, "sum_p": sure, "spread": spread} if samples else None,
            "slo_misses": self._slow,
            "outcomes": {name: count for name, count in outcomes.items() if count},
            "drift": self._drift.take() if self._drift is not None else {},
            "golden": self._golden,
        }

    def _add_seconds(self, name: str, seconds: float) -> None:
        """Count whole seconds; what is left over is kept for the next ones."""
        every = self._unheard.get(name, 0.0) + seconds
        _add(self._outcomes, name, int(every))
        self._unheard[name] = every - int(every)


def _millionths(shares: Array) -> int:
    return int(np.rint(np.minimum(np.maximum(shares, 0.0), 1.0) * MILLION).astype(np.int64).sum())


def _add(counts: dict[Any, int], key: Any, count: int = 1) -> None:
    counts[key] = counts.get(key, 0) + count
