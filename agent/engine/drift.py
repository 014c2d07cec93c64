"""Live features in the bins of the baseline that a release was shipped with."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.engine.runtimes import Array
from wire.features import Measure, measure_of, step, stride_of
from wire.manifest import FeatureBaseline, Manifest, Quantization, Variant

MAX_ROWS = 1024
"""Of one request; of larger batches, rows that are evenly spread."""

MAX_WAITING = 256
"""Samples that wait to be counted: many at a time cost less than each on its own."""

MAX_WAITING_VALUES = 16_384


class Bins:
    """Counts of one feature, as `numpy.histogram` bins it; then NaN, then outside of all bins."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = np.array(edges, np.float64)
        self.counts: Array = np.zeros(len(edges) + 1, np.int64)

    def add(self, values: Array) -> None:
        """Count values, FP64 (n)."""
        if not values.size:
            return
        last = len(self._edges) - 1
        places = np.searchsorted(self._edges, values, "right") - 1
        places[(places < 0) | (places == last)] = last + 1
        # The last bin has its upper edge too; and NaN is sorted behind all numbers.
        places[values == self._edges[-1]] = last - 1
        places[np.isnan(values)] = last
        self.counts += np.bincount(places, minlength=last + 2)

    def take(self) -> list[int]:
        """Return the counts since the last time, [] if there are none, and start anew."""
        if not self.counts.any():
            return []
        taken: list[int] = self.counts.tolist()
        self.counts[:] = 0
        return taken


@dataclass(slots=True)
class _Feature:
    """A feature that is counted, and what waits for that."""

    number: int
    """In the baseline."""
    measure: Measure
    bins: Bins
    lengths: list[float] = field(default_factory=list)
    first: int = 0
    """Of elements: which of those that are kept of its input is the first."""


@dataclass(slots=True)
class _Row:
    """What is kept of the samples of one input, for those features that are few elements."""

    places: list[int] = field(default_factory=list)
    waiting: list[Array] = field(default_factory=list)


class Drift:
    """Counts the features of some requests, after they were answered.

    Of a model with a large feature one request in `stride` is counted, and one row of that: means
    take time, and pictures of a film are no independent samples.
    """

    def __init__(self, manifest: Manifest, variant: Variant, phase: int) -> None:
        self.unknown: list[str] = []
        """Why features are not counted, one line each."""
        self._features: list[_Feature] = []
        self._rows: dict[int, _Row] = {}
        self._tops: list[float] = []
        self._samples: dict[int, list[Array]] = {}
        """Of whole tensors, elements that stand for all, by input: (samples, elements)."""
        self._quantization = [
            theirs.quantization or mine.quantization
            for mine, theirs in zip(manifest.inputs, variant.inputs, strict=True)
        ]
        baseline = manifest.baseline
        for number, given in enumerate(baseline.features if baseline else ()):
            self._open(number, given, manifest)
        measures = [feature.measure for feature in self._features]
        self.stride = (baseline.every if baseline else None) or stride_of(measures, manifest)
        self.phase = phase % self.stride
        """How many requests are taken to have passed already."""
        self._confidence = any(measure.kind == "confidence" for measure in measures)
        self._texts = [each for each in self._features if each.measure.kind == "length"]
        for measure in measures:
            if measure.kind in ("mean", "std"):
                self._samples[measure.input] = []
        self._waiting = 0
        self._waiting_values = 0

    def _open(self, number: int, given: FeatureBaseline, manifest: Manifest) -> None:
        try:
            measure = measure_of(given.name, manifest)
            quantization = self._quantization[measure.input]
            if measure.kind != "confidence" and quantization and len(quantization.scale) > 1:
                raise ValueError(f"feature {given.name}: expected an input with one scale")
        except ValueError as error:
            self.unknown.append(f"{error}; it is not counted")
            return
        feature = _Feature(number, measure, Bins(given.edges))
        if measure.kind in ("element", "column"):
            row = self._rows.setdefault(measure.input, _Row())
            feature.first = len(row.places)
            row.places += range(measure.place, measure.place + measure.width)
        self._features.append(feature)

    def __bool__(self) -> bool:
        """Whether there is anything to count."""
        return bool(self._features)

    def see(self, inputs: list[Array]) -> None:
        """Take up the inputs of a request whose turn it is."""
        self._waiting += 1
        for place, row in self._rows.items():
            rows = inputs[place]
            rows = rows.reshape(len(rows), -1)
            if len(rows) > MAX_ROWS:
                rows = rows[:: -(-len(rows) // MAX_ROWS)]
            # A copy of what is needed: the rest may be a large body.
            kept = rows[:, row.places]
            row.waiting.append(kept)
            self._waiting_values += kept.size
        for place, samples in self._samples.items():
            flat = self._one(inputs[place]).reshape(1, -1)
            # Of a batch one row is a sample.
            samples.append(kept := flat[:, :: step(flat.size)].copy())
            self._waiting_values += kept.size
        for feature in self._texts:
            measure = feature.measure
            feature.lengths.append(_length(self._one(inputs[measure.input]), measure.pad))
        if self._waiting >= MAX_WAITING or self._waiting_values >= MAX_WAITING_VALUES:
            self.count()

    def see_many(self, given: list[Array]) -> None:
        """Take up the inputs of requests of one row to a model with one input.

        They are copies: nothing else is kept with them.
        """
        if self._texts or len({array.shape for array in given}) != 1 or len(given[0]) != 1:
            for array in given:
                self.see([array])
            return
        self._waiting += len(given)
        rows = np.concatenate(given).reshape(len(given), -1)
        for row in self._rows.values():
            row.waiting.append(kept := rows[:, row.places])
            self._waiting_values += kept.size
        for samples in self._samples.values():
            samples.append(kept := rows[:, :: step(rows.shape[1])])
            self._waiting_values += kept.size
        if self._waiting >= MAX_WAITING or self._waiting_values >= MAX_WAITING_VALUES:
            self.count()

    def sure(self, tops: list[float]) -> None:
        """Take up the top scores of requests whose turn it was."""
        if self._confidence:
            self._tops += tops if len(tops) <= MAX_ROWS else tops[:: -(-len(tops) // MAX_ROWS)]
            if len(self._tops) >= MAX_WAITING_VALUES:
                self.count()

    def _one(self, array: Array) -> Any:
        """Return one sample of a tensor, of a batch the one whose turn it is."""
        return array[self._waiting % len(array)] if array.ndim > 1 else array

    def count(self) -> None:
        """Catch up: to be done before anything is told."""
        rows = {
            place: self._reals(place, row.waiting)
            for place, row in self._rows.items()
            if row.waiting
        }
        spreads = {place: self._spreads(place, waiting) for place, waiting in self._samples.items()}
        for feature in self._features:
            measure = feature.measure
            match measure.kind:
                case "confidence":
                    values = np.array(self._tops, np.float64)
                case "length":
                    values = np.array(feature.lengths, np.float64)
                    feature.lengths.clear()
                case "mean" | "std":
                    values = spreads[measure.input][measure.kind == "std"]
                case _ if measure.input not in rows:
                    continue
                case _ if measure.width > 1:
                    group = rows[measure.input][:, feature.first : feature.first + measure.width]
                    none = group.max(axis=1) < 0.5
                    values = np.where(none, -1.0, group.argmax(axis=1).astype(np.float64))
                case _:
                    values = rows[measure.input][:, feature.first] * measure.scale + measure.offset
            feature.bins.add(values)
        for row in self._rows.values():
            row.waiting.clear()
        self._tops.clear()
        self._waiting = self._waiting_values = 0

    def _spreads(self, place: int, waiting: list[Array]) -> tuple[Array, Array]:
        """Return means and deviations of what waits of an input, those of one size together."""
        means, deviations = [np.empty(0)], [np.empty(0)]
        while waiting:
            size = waiting[0].shape[1]
            alike = [block for block in waiting if block.shape[1] == size]
            waiting[:] = [block for block in waiting if block.shape[1] != size]
            mean, deviation = means_and_stds(np.concatenate(alike), self._quantization[place])
            means.append(mean)
            deviations.append(deviation)
        return np.concatenate(means), np.concatenate(deviations)

    def _reals(self, place: int, waiting: list[Array]) -> Array:
        return _dequantized(np.concatenate(waiting), self._quantization[place])

    def take(self) -> dict[int, list[int]]:
        """Return the counts by feature since the last time, and start anew."""
        self.count()
        taken = {feature.number: feature.bins.take() for feature in self._features}
        return {number: counts for number, counts in taken.items() if counts}


def means_and_stds(samples: Array, quantization: Quantization | None = None) -> tuple[Array, Array]:
    """Return mean and standard deviation of every row, FP64 (n); integers dequantized."""
    reals = _dequantized(samples, quantization)
    with np.errstate(invalid="ignore", over="ignore"):
        return reals.mean(axis=1), reals.std(axis=1)


def _dequantized(array: Array, quantization: Quantization | None) -> Array:
    """Return a copy as FP64, of quantized integers what they stand for."""
    reals: Array = array.astype(np.float64)
    if quantization is not None and array.dtype.kind in "iu" and len(quantization.scale) == 1:
        reals -= quantization.zero_point[0] if quantization.zero_point else 0
        reals *= quantization.scale[0]
    return reals


def _length(sample: Any, pad: int | None) -> float:
    if pad is not None:
        return float(np.count_nonzero(sample != pad))
    texts = [sample] if isinstance(sample, str) else np.ravel(sample).tolist()
    return float(sum(len(text) for text in texts))
