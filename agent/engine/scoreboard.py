"""What a model answered, how fast and how rightly, as counts since the last report."""

from collections import OrderedDict
from typing import Any

from agent.control import ModelSpec, Window
from agent.engine.comparison import Outcome
from agent.engine.values import Values
from wire.telemetry import Histogram

MAX_REMEMBERED = 8192
"""Requests a label can still be given for."""

MAX_REMEMBERED_ROWS = 8 * MAX_REMEMBERED
MAX_CONFUSED = 2048
"""Kinds of confusion counted in one window; `labelled` and `correct` count them all."""


MAX_UNCOUNTED = 32
"""Answers that wait to be counted: many at a time cost less than each on its own."""


class UnknownRequestError(Exception):
    """No such request is remembered, or not any more."""


class LabelError(ValueError):
    """The labels do not fit the request; the message says why."""


class Scoreboard:
    """Counts of one model. Labels join by request id, once each."""

    def __init__(self, spec: ModelSpec, now: int) -> None:
        self._spec = spec
        self._start = now
        self._remembered: OrderedDict[str, Outcome] = OrderedDict()
        self._rows = 0
        self.values = Values()
        """True values of answers that have no classes."""
        self._uncounted: list[tuple[Outcome, float, list[float]]] = []
        self._clear()

    def _clear(self) -> None:
        self._requests = 0
        self._errors = 0
        self._drops = 0
        self._orphan_labels = 0
        self._labelled = 0
        self._correct = 0
        self._latency: dict[int, int] = {}
        self._predicted: dict[int, int] = {}
        self._confidence: dict[int, int] = {}
        self._confusion: dict[str, int] = {}

    def answered(
        self, id: str, latency_us: float, classes: tuple[int, ...], tops: list[float]
    ) -> Outcome:
        """Count an answer: a request is one, and so is each of its rows as a prediction."""
        outcome = Outcome(id, classes)
        self._uncounted.append((outcome, latency_us, tops))
        if len(self._uncounted) == MAX_UNCOUNTED:
            self._count()
        return outcome

    def _count(self) -> None:
        """Catch up: to be done before anything else is asked or told here."""
        for outcome, latency_us, tops in self._uncounted:
            self._requests += 1
            _add(self._latency, Histogram.bin_of(latency_us))
            for winner in outcome.classes:
                _add(self._predicted, winner)
            for top in tops:
                _add(self._confidence, max(0, min(19, int(top * 20))))
            if outcome.classes:
                self._remember(outcome)
        self._uncounted.clear()

    def failed(self) -> None:
        """Count a request that the model could not answer."""
        self._requests += 1
        self._errors += 1

    def dropped(self) -> None:
        """Count a request that found no room in the queue."""
        self._drops += 1

    def label(self, id: str, labels: tuple[int, ...]) -> None:
        """Join the true classes of a request's rows to its answer.

        Raises:
            UnknownRequestError: the request is not remembered; counted as an orphan.
            LabelError: of another number, or there are some already.
        """
        self._count()
        outcome = self._remembered.get(id)
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
        if outcome.comparison is not None:
            outcome.comparison.labelled(outcome)

    def remembers(self, id: str) -> bool:
        """Whether a label for this request would find it."""
        self._count()
        return id in self._remembered or self.values.remembers(id)

    def take(self, now: int, shadow: dict[str, Any] | None) -> Window | None:
        """Return the counts since the last time, or None if nothing happened; start anew."""
        self._count()
        counts: dict[str, Any] = {
            "requests": self._requests,
            "errors": self._errors,
            "drops": self._drops,
            "latency": self._latency,
            "predicted": self._predicted,
            "confidence": self._confidence,
            "labelled": self._labelled,
            "correct": self._correct,
            "confusion": self._confusion,
            "orphan_labels": self._orphan_labels,
        }
        if errors := self.values.take():
            counts["value_errors"] = {"bins": errors}
        if shadow is not None:
            counts["shadow"] = shadow
        elif not any(counts.values()):
            return None
        spec = self._spec
        window = Window(
            spec.model, spec.version, spec.manifest, spec.variant, self._start, now, counts
        )
        self._start = now
        self._clear()
        return window

    def _remember(self, outcome: Outcome) -> None:
        earlier = self._remembered.pop(outcome.id, None)
        if earlier is not None:
            self._rows -= len(earlier.classes)
        self._remembered[outcome.id] = outcome
        self._rows += len(outcome.classes)
        while len(self._remembered) > MAX_REMEMBERED or self._rows > MAX_REMEMBERED_ROWS:
            _, oldest = self._remembered.popitem(last=False)
            self._rows -= len(oldest.classes)


def _add(counts: dict[Any, int], key: Any) -> None:
    counts[key] = counts.get(key, 0) + 1
