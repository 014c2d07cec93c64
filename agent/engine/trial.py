"""The trial of a model: it loads, gets warm, and gives the answers it was released with."""

import time
from dataclasses import dataclass

import numpy as np

from agent.control import Loaded, ModelSpec
from agent.engine import sanity
from agent.engine.blame import Blame
from agent.engine.errors import AnswerError
from agent.engine.model import Model, file_path
from agent.engine.runtimes import Array, CannotRunError, cannot_run
from agent.engine.tensors import DTYPES
from wire.manifest import TensorSpec
from wire.twin import Reason

WARM_RUNS = 10
WARM_S = 2.0
MAX_WARMING_BYTES = 1024 * 1024
"""Of the golden samples that a restart reads to get warm; more would take longer than it saves."""
MAX_GOLDEN_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Passed:
    """A model that passed its trial."""

    model: Model
    loaded: Loaded
    warm_bytes: int
    """Size of the inputs that `loaded.invoke_ms` was measured with."""


@dataclass(frozen=True, slots=True)
class Golden:
    """What a model answers to given inputs: first axis is the sample."""

    inputs: list[Array]
    outputs: list[Array]
    labels: Array | None = None
    """The true class of every sample."""

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.inputs[0])

    @property
    def size_bytes(self) -> int:
        """What they take in memory."""
        return sum(array.nbytes for array in (*self.inputs, *self.outputs))


@dataclass(frozen=True, slots=True)
class Conformity:
    """How a model's answers compare with its golden ones."""

    samples: int = 0
    flips: int = 0
    """Samples whose class differs."""
    worst: float = 0.0
    """Largest absolute difference of any output element."""
    worst_same_class: float = 0.0
    """The same over the samples whose class does not differ."""


def try_model(spec: ModelSpec, threads: int, blame: Blame, *, golden: bool) -> Passed:
    """Load a model, warm it up and, with `golden`, compare its answers with the golden ones.

    Raises:
        CannotRunError: it failed, with the reason.
    """
    try:
        return _try_model(spec, threads, blame, golden=golden)
    except CannotRunError:
        raise
    except AnswerError as error:
        raise CannotRunError(Reason.GOLDEN_MISMATCH, str(error)) from error
    except Exception as error:
        raise cannot_run(error) from error


def _try_model(spec: ModelSpec, threads: int, blame: Blame, *, golden: bool) -> Passed:
    memory_before = sanity.memory_bytes()
    began = time.perf_counter()
    model = Model(spec, threads, blame)
    load_ms = (time.perf_counter() - began) * 1000
    samples = read_golden(model) if golden else _golden_at_hand(model)
    first = sample_inputs(model, samples, 0) if samples else _blank(model)
    invoke_ms, cost_ms = _warm_up(model, first)
    taken_bytes = sanity.memory_bytes() - memory_before - (samples.size_bytes if samples else 0)
    if golden and samples is None:
        sanity.check_probabilities(model, model.run(first), "an input of zeros")
    # Golden samples of a model that hides its state are one stream, in their order.
    model.forget()
    found = conform(model, samples) if samples and golden else Conformity()
    if golden:
        sanity.check_budget(model, cost_ms, taken_bytes)
    if model.desk is not None:
        model.desk.rehearse(model.run(first))
    if model.framing is not None:
        model.listener().hear(np.zeros(model.framing.hop_samples, np.int16))
    loaded = Loaded(
        model=spec.model,
        runtime=model.runtime_text,
        load_ms=round(load_ms, 3),
        invoke_ms=round(invoke_ms, 4),
        golden_samples=found.samples,
        golden_flips=found.flips,
        golden_worst=found.worst,
        fallback=model.runtime.fallback,
    )
    return Passed(model, loaded, sum(array.nbytes for array in first))


def read_golden(model: Model) -> Golden | None:
    """Return the golden samples of a model, None when its release has none.

    Raises:
        CannotRunError: they are not what the manifest promises.
    """
    file = model.manifest.golden
    if file is None:
        return None
    import zipfile  # 1 MB that releases without samples do without

    path = file_path(model.spec, file.digest)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_GOLDEN_BYTES:
            raise ValueError(f"expected at most {MAX_GOLDEN_BYTES} bytes unpacked, got {size}")
        with np.load(path, allow_pickle=False) as arrays:
            inputs = [arrays[f"input_{place}"] for place in range(len(model.manifest.inputs))]
            outputs = [arrays[f"output_{place}"] for place in range(len(model.manifest.outputs))]
            labels = arrays["label"] if "label" in arrays.files else None
        lengths = {len(array) for array in (*inputs, *outputs)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"expected as many samples in every array, got {sorted(lengths)}")
        for spec, array in zip(model.manifest.inputs, inputs, strict=True):
            _check_samples(spec, array)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CannotRunError(Reason.BAD_MANIFEST, f"golden samples {file.name}: {error}") from error
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (len(inputs[0]),)):
        labels = None  # nothing rests on them
    return Golden(inputs, outputs, labels)


def sample_inputs(model: Model, golden: Golden, place: int) -> list[Array]:
    """Return one golden sample as the model takes it: a batch of one where there is a batch."""
    return [
        _one(spec, array, place)
        for spec, array in zip(model.manifest.inputs, golden.inputs, strict=True)
    ]


def conform(model: Model, golden: Golden) -> Conformity:
    """Run the golden samples and compare.

    A sample whose class flips spends one of the variant's `golden_flips`; 8-bit kernels differ
    by a step between processors, which is enough to turn a near tie. Every other sample has to
    stay within `golden_tolerance`. Outputs must be finite, and must not be one constant where
    the golden ones are not; probabilities must sum to 1.

    Raises:
        CannotRunError: golden_mismatch, with what differs.
    """
    variant = model.variant
    flips, worst, worst_same_class = 0, 0.0, 0.0
    answers = []
    for place in range(golden.samples):
        outputs = model.run(sample_inputs(model, golden, place))
        expected = [array[place : place + 1] for array in golden.outputs]
        difference = _difference(model, place, outputs, expected)
        flipped = model.classify(outputs)[0] != model.classify(expected)[0]
        flips += flipped
        worst = max(worst, difference)
        if not flipped:
            worst_same_class = max(worst_same_class, difference)
        sanity.check_probabilities(model, outputs, f"golden sample {place}")
        answers.append(b"".join(array.tobytes() for array in outputs))
    found = Conformity(golden.samples, flips, worst, worst_same_class)
    if worst_same_class > variant.golden_tolerance or flips > variant.golden_flips:
        raise CannotRunError(
            Reason.GOLDEN_MISMATCH,
            f"{golden.samples} golden samples: expected differences up to "
            f"{variant.golden_tolerance:g} and up to {variant.golden_flips} changed classes, "
            f"got {worst_same_class:g} and {flips}",
        )
    if len(set(answers)) == 1 and _varied(golden.inputs) and _varied(golden.outputs):
        raise CannotRunError(
            Reason.GOLDEN_MISMATCH,
            f"the same answer to all {golden.samples} golden samples, which differ",
        )
    return found


def deviates(model: Model, place: int, outputs: list[Array], expected: list[Array]) -> bool:
    """Whether an output left the variant's tolerance, or is no such output at all."""
    try:
        return _difference(model, place, outputs, expected) > model.variant.golden_tolerance
    except CannotRunError:
        return True


def _golden_at_hand(model: Model) -> Golden | None:
    """Return golden samples to get warm with, if there are some and few: nothing rests on them."""
    file = model.manifest.golden
    if file is None or file.size_bytes > MAX_WARMING_BYTES:
        return None
    try:
        return read_golden(model)
    except CannotRunError:
        return None


def _warm_up(model: Model, inputs: list[Array]) -> tuple[float, float]:
    """Run until the time settles; return the median time of a run and of its cost, milliseconds.

    The cost of a run is the lesser of its time and its processor time: the first grows while a
    champion serves beside it, the second with the number of threads.
    """
    times: list[float] = []
    costs: list[float] = []
    until = time.perf_counter() + WARM_S
    while len(times) < WARM_RUNS and (not times or time.perf_counter() < until):
        began, cpu = time.perf_counter(), time.process_time()
        model.run(inputs)
        times.append((time.perf_counter() - began) * 1000)
        costs.append(min(times[-1], (time.process_time() - cpu) * 1000))
    return float(np.median(times)), float(np.median(costs))


def _blank(model: Model) -> list[Array]:
    if model.framing is not None:
        return model.framing.silence()
    arrays = []
    for spec in model.manifest.inputs:
        shape = [max(size, 1) for size in spec.shape]
        if spec.datatype == "BYTES":
            arrays.append(np.full(shape, "", dtype=object))
        else:
            arrays.append(np.zeros(shape, DTYPES[spec.datatype]))
    return arrays


def _one(spec: TensorSpec, array: Array, place: int) -> Array:
    batched = spec.shape[:1] in ((-1,), (1,))
    return array[place : place + 1] if batched else np.asarray(array[place])


def _check_samples(spec: TensorSpec, array: Array) -> None:
    if array.dtype != DTYPES.get(spec.datatype):
        raise ValueError(f"{spec.name}: expected {spec.datatype}, got {array.dtype}")
    shape = _one(spec, array, 0).shape
    if len(shape) != len(spec.shape) or any(
        want not in (-1, size) for want, size in zip(spec.shape, shape, strict=True)
    ):
        raise ValueError(f"{spec.name}: expected {list(spec.shape)} a sample, got {list(shape)}")


def _difference(model: Model, place: int, outputs: list[Array], expected: list[Array]) -> float:
    largest = 0.0
    for spec, got, want in zip(model.manifest.outputs, outputs, expected, strict=True):
        if got.size != want.size or got.dtype != want.dtype:
            raise CannotRunError(
                Reason.GOLDEN_MISMATCH,
                f"golden sample {place}: output {spec.name}: expected {want.size} elements of "
                f"{want.dtype}, got {got.size} of {got.dtype}",
            )
        if not np.isfinite(got).all():
            raise CannotRunError(
                Reason.GOLDEN_MISMATCH,
                f"golden sample {place}: output {spec.name}: expected finite numbers",
            )
        gap = np.abs(got.ravel().astype(np.float64) - want.ravel().astype(np.float64))
        largest = max(largest, float(gap.max(initial=0.0)))
    return largest


def _varied(arrays: list[Array]) -> bool:
    return any((array != array[:1]).any() for array in arrays)
