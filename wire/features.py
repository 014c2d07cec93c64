"""What the features of a baseline are called, and what each of them measures.

Both sides measure by these definitions: the workshop what a release's makers had, the device what
its apps send. A feature is one number a sample, taken from the model's own inputs as real numbers
(integers dequantized) or from its answer.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wire.task import TableInput, TextInput

if TYPE_CHECKING:
    from wire.manifest import Manifest, TensorSpec

CONFIDENCE = "confidence"
SMALL = 64
"""Elements of a sample: of tensors up to this size each sample may be counted."""
LARGEST = 16_384
"""Elements that a mean is made of: of larger tensors, elements that are evenly spread."""
STRIDE = 11
"""Of requests to a model with a large feature, or that listens, one in so many is counted. A prime,
since what comes in turns (cameras, pages) mostly comes in twos, fives and sixes."""

Kind = Literal["confidence", "element", "column", "mean", "std", "length"]
_ELEMENT = re.compile(r"(.+)\[(\d{1,9})\]")


@dataclass(frozen=True, slots=True)
class Measure:
    """How a feature comes from a sample."""

    kind: Kind
    input: int = 0
    """Place of the input in the manifest."""
    place: int = 0
    """Of the element, or of the first of them, in the sample as a flat row."""
    width: int = 1
    """Elements that stand for one category: their place is the value, -1 where all are 0."""
    scale: float = 1.0
    """What the element is multiplied by, before `offset` is added: a column in its own unit."""
    offset: float = 0.0
    pad: int | None = None
    """What does not count for a length; None: characters of a text."""

    @property
    def of_all(self) -> bool:
        """Whether the whole tensor is gone through."""
        return self.kind in ("mean", "std", "length")


def step(elements: int) -> int:
    """Return how far apart the elements are that a mean is made of.

    Odd, and no multiple of 3, so that all channels of a picture have their share.
    """
    spread = -(-elements // LARGEST)
    while spread > 1 and (spread % 2 == 0 or spread % 3 == 0):
        spread += 1
    return spread


def measure_of(name: str, manifest: "Manifest") -> Measure:
    """Return what the feature called `name` measures.

    Raises:
        ValueError: no such thing of this release; the message says what there is.
    """
    if name == CONFIDENCE:
        if manifest.task.kind == "tensor":
            raise ValueError(f"feature {name}: expected a task with classes, got none")
        return Measure("confidence")
    if manifest.stream is not None:
        raise ValueError(f"feature {name}: expected {CONFIDENCE} alone of a model that listens")
    if found := _ELEMENT.fullmatch(name):
        place, spec = _input(found[1], name, manifest)
        return _element(name, place, spec, int(found[2]))
    about, _, what = name.rpartition(".")
    given = manifest.task.input
    if isinstance(given, TableInput) and about == given.name:
        column = _column(what, given, manifest)
        if column is not None:
            return column
    place, spec = _input(about, name, manifest)
    if what == "length":
        return _length(name, place, spec, manifest)
    if what not in ("mean", "std"):
        raise ValueError(f"feature {name}: {_expected(manifest)}")
    if spec.datatype == "BYTES":
        raise ValueError(f"feature {name}: expected an input of numbers, got texts")
    return Measure("mean" if what == "mean" else "std", place)


def stride_of(measures: list[Measure], manifest: "Manifest") -> int:
    """Return of how many requests one is counted, where the baseline does not say."""
    large = manifest.stream is not None
    for measure in measures:
        if measure.of_all:
            shape = manifest.inputs[measure.input].shape[1:]
            size = 1
            for each in shape:
                size *= each
            large = large or -1 in shape or size >= SMALL
    return STRIDE if large else 1


def _input(about: str, name: str, manifest: "Manifest") -> tuple[int, "TensorSpec"]:
    """Return the input called `about`, as the model calls it or as apps do."""
    given = manifest.task.input
    if given is not None and about == given.name:
        about = manifest.task.fed(manifest.inputs)["tensor"].name
    for place, spec in enumerate(manifest.inputs):
        if spec.name == about:
            return place, spec
    raise ValueError(f"feature {name}: {_expected(manifest)}")


def _element(name: str, place: int, spec: "TensorSpec", at: int) -> Measure:
    size = 1
    for each in spec.shape[1:]:
        size = -1 if -1 in (size, each) else size * each
    if spec.datatype == "BYTES" or len(spec.shape) < 2:
        raise ValueError(f"feature {name}: expected an input of numbers with a row a sample")
    if size > SMALL * SMALL or (size != -1 and at >= size):
        raise ValueError(
            f"feature {name}: expected an element of up to {min(size, SMALL * SMALL)}, got {at} of "
            f"{size}"
        )
    return Measure("element", place, at)


def _column(what: str, given: TableInput, manifest: "Manifest") -> Measure | None:
    place, _ = _input(given.name, what, manifest)
    at = 0
    for column in given.columns:
        if column.name == what:
            if column.kind == "number":
                return Measure("column", place, at, 1, column.std, column.mean)
            return Measure("column", place, at, column.features)
        at += column.features
    return None


def _length(name: str, place: int, spec: "TensorSpec", manifest: "Manifest") -> Measure:
    given = manifest.task.input
    if spec.datatype == "BYTES":
        return Measure("length", place)
    if not isinstance(given, TextInput):
        raise ValueError(f"feature {name}: expected an input of texts")
    return Measure("length", place, pad=given.pad)


def _expected(manifest: "Manifest") -> str:
    names = [spec.name for spec in manifest.inputs]
    told = f"expected {CONFIDENCE}, or INPUT.mean, INPUT.std, INPUT[i] or INPUT.length of {names}"
    given = manifest.task.input
    if isinstance(given, TableInput):
        told += f", or {given.name}.COLUMN of {[column.name for column in given.columns][:20]}"
    return told
