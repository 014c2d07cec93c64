"""One loaded model: a release's tensors by the names apps use, and what its answers mean."""

import math
import mmap
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from agent.control import ModelSpec
from agent.engine.blame import Blame
from agent.engine.errors import AnswerError
from agent.engine.framing import Framing, Listener
from agent.engine.meter import Metered
from agent.engine.runtimes import Array, CannotRunError, Port, Runtime, open_runtime
from agent.engine.tasks.detection import NOTHING
from agent.engine.tasks.opening import open_desk, open_detector
from wire.codec import DecodeError, decode
from wire.ids import digest_of
from wire.manifest import Manifest, TensorSpec, Variant
from wire.twin import Reason

FEW_SCORES = 64
"""So few are looked through in Python, quicker than NumPy makes up its mind."""


class Model:
    """An opened variant of a release. Not for two threads at a time.

    Raises:
        CannotRunError: the files, the manifest and the model do not go together.
    """

    def __init__(self, spec: ModelSpec, threads: int, blame: Blame) -> None:
        self.spec = spec
        self.manifest = read_manifest(spec)
        self.variant = variant_of(self.manifest, spec)
        self.labels = _labels(self.manifest, spec)
        self._blame = blame
        self._mark = spec.model.encode()
        self._threads = threads
        # A slow disk may take its time here: the daemon waits for `ready` no longer than it likes.
        loading = blame.begin(self._mark, timed=False)
        try:
            path = file_path(spec, self.variant.artifact.digest)
            self.runtime: Runtime = open_runtime(self.variant.format, path, threads)
        finally:
            blame.end(loading)
        self.finite_only = _finite_only(self.variant, path)
        self._in_order, self._out_order = (
            _sorter(_order(kind, self.variant, wanted, ports))
            for kind, wanted, ports in (
                ("input", self.variant.inputs, self.runtime.inputs),
                ("output", self.variant.outputs, self.runtime.outputs),
            )
        )
        self._row_by_row = _one_row_only(self.manifest, self.variant, self.runtime)
        self.scores = _scores_output(self.manifest)
        self.input_places = {spec.name: place for place, spec in enumerate(self.manifest.inputs)}
        self.batched = self.manifest.inputs[0].shape[:1] == (-1,)
        """Whether the first input's first dimension is how many rows a request has."""

        def find(digest: str) -> str:
            return file_path(spec, digest)

        self.detector = open_detector(self.manifest, self.variant, self.labels, find)
        self.desk = open_desk(
            self.manifest,
            self.variant,
            scores=self.scores,
            labels=self.labels,
            detector=self.detector,
            find=find,
        )
        self._step = _step(self.manifest, self.variant, self.scores)
        self._one_of_many = self.detector is None and self.manifest.stream is None
        self.framing = Framing(self.manifest, self.variant) if self.manifest.stream else None
        """None where every request stands for itself."""

    @property
    def runtime_text(self) -> str:
        """Name and version of the runtime."""
        return f"{self.runtime.name} {self.runtime.version}"

    @property
    def class_names(self) -> list[str]:
        """Labels by class number; with detections one more, for where nothing was found."""
        if self.detector is None:
            return self.labels
        named = self.labels[: self.detector.classes]
        unnamed = range(len(named), self.detector.classes)
        return [*named, *map(str, unnamed), NOTHING]

    @cached_property
    def classes(self) -> int | None:
        """How many classes an answer may have, -1 for any number, None when it has none."""
        if self.detector is not None:
            return self.detector.classes + 1
        if self.scores is None:
            return None
        return 2 if self.is_yes_or_no else self.manifest.outputs[self.scores].shape[-1]

    @property
    def is_yes_or_no(self) -> bool:
        """Whether one score tells of two classes."""
        return (
            self.framing is not None
            and self.scores is not None
            and self.manifest.outputs[self.scores].shape[-1] == 1
        )

    def run(self, inputs: list[Array], runtime: Runtime | None = None) -> list[Array]:
        """Return the outputs in the manifest's order for inputs in the manifest's order.

        A model file made for one row runs once for every row of a batch. `runtime` is another
        interpreter of the same file.

        Raises:
            Exception: whatever the runtime raises.
        """
        if self._row_by_row and inputs[0].shape[0] != 1:
            rows = [
                self.run([array[row : row + 1] for array in inputs], runtime)
                for row in range(inputs[0].shape[0])
            ]
            return [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        runtime = runtime or self.runtime
        run = self._blame.begin(self._mark, runtime.interrupt)
        try:
            outputs = runtime.run(self._in_order(inputs))
        except Exception as error:
            if run.interrupted:
                raise CannotRunError(
                    Reason.HUNG, "no answer in time; the run was stopped"
                ) from error
            raise
        finally:
            self._blame.end(run)
        return self._out_order(outputs)

    def listener(self) -> Listener:
        """Return the memory of a new stream, with an interpreter of its own where that has state.

        Raises:
            CannotRunError: what extracts features is not installed.
            Exception: whatever the runtime raises.
        """
        assert self.framing is not None
        runtime = self.runtime
        if self._hides_state:
            runtime = self._another_runtime()
            if isinstance(self.runtime, Metered):
                runtime = self.runtime.beside(runtime)
        return Listener(self.framing, lambda inputs: self.run(inputs, runtime))

    def apart(self) -> Callable[[list[Array]], list[Array]]:
        """Return what runs the model in an interpreter of its own, beside the one that serves.

        Raises:
            Exception: whatever the runtime raises.
        """
        runtime = self._another_runtime()
        return lambda inputs: self.run(inputs, runtime)

    def forget(self) -> None:
        """Be as if it had never run: a state that the model hides goes with its interpreter."""
        if self._hides_state:
            self.runtime = self._another_runtime()

    def classify(self, outputs: list[Array]) -> tuple[tuple[int, ...], list[float]]:
        """Return the class of every row and the score of that class, 0 to 1.

        Logits are turned into probabilities first, 8-bit scores into reals. Of detections the
        best one counts for its picture.

        Raises:
            AnswerError: a score is not finite.
        """
        if self.detector is not None:
            return self.detector.leading(outputs)
        if self.scores is not None:
            scores = outputs[self.scores]
            if 1 < scores.size <= FEW_SCORES and scores.size == scores.shape[-1]:
                row: list[float] = scores.ravel().tolist()
                if math.isfinite(sum(row)):
                    return self._classify_row(row)
        reals = self.real_scores(outputs)
        if reals is None:
            return (), []
        if self.is_yes_or_no:
            return self._yes_or_no(reals[:, 0])
        tops = reals.max(axis=1)
        # The largest of a row with a NaN in it is NaN.
        if not np.isfinite(tops).all():
            raise AnswerError(f"{self.manifest.ref}: the model's scores are not finite")
        if self.manifest.task.scores_are == "logits":
            tops = 1 / np.exp(reals - tops[:, None]).sum(axis=1)
        return tuple(reals.argmax(axis=1).tolist()), tops.tolist()

    def few_scores(self, outputs: list[Array]) -> Array | None:
        """Return the scores of one row, if they are few and finite: to be classified later.

        Of those, many at a time cost less than each on its own. None: to be classified at once.
        """
        if self.scores is None or not self._one_of_many:
            return None
        scores = outputs[self.scores]
        if not 1 < scores.size <= FEW_SCORES or scores.size != scores.shape[-1]:
            return None
        if scores.dtype.kind == "f" and not math.isfinite(sum(scores.ravel().tolist())):
            return None
        return scores

    def classify_few(self, waiting: list[Array]) -> tuple[Array, Array]:
        """Return the class and its score, FP64, of each of what `few_scores` returned."""
        reals = np.concatenate(waiting).reshape(len(waiting), -1).astype(np.float64)
        if self._step is not None:
            scale, zero_point = self._step
            reals = (reals - zero_point) * scale
        tops: Array = reals.max(axis=1)
        if self.manifest.task.scores_are == "logits":
            tops = 1 / np.exp(reals - tops[:, None]).sum(axis=1)
        return reals.argmax(axis=1), tops

    def _classify_row(self, row: list[float]) -> tuple[tuple[int, ...], list[float]]:
        """Do for one row of few scores, all finite, what `classify` does."""
        if self._step is not None:
            scale, zero_point = self._step
            row = [(score - zero_point) * scale for score in row]
        top = max(row)
        winner = row.index(top)
        if self.manifest.task.scores_are == "logits":
            top = 1 / sum([math.exp(score - top) for score in row])
        return (winner,), [top]

    def real_scores(self, outputs: list[Array]) -> Array | None:
        """Return one row of scores for every row, 8-bit ones as reals; None without scores."""
        if self.scores is None:
            return None
        scores = outputs[self.scores]
        reals = scores.reshape(-1, scores.shape[-1]).astype(np.float64)
        if self._step is not None:
            scale, zero_point = self._step
            reals = (reals - zero_point) * scale
        return reals

    def _yes_or_no(self, scores: Array) -> tuple[tuple[int, ...], list[float]]:
        """Return for single scores the second class from the threshold on, else the first."""
        if not np.isfinite(scores).all():
            raise AnswerError(f"{self.manifest.ref}: the model's scores are not finite")
        if self.manifest.task.scores_are == "logits":
            scores = 1 / (1 + np.exp(-scores))
        assert self.framing is not None
        yes = scores >= self.framing.stream.threshold
        return tuple(yes.astype(int).tolist()), np.where(yes, scores, 1 - scores).tolist()

    @property
    def _hides_state(self) -> bool:
        return self.framing is not None and self.framing.stream.state == "internal"

    def _another_runtime(self) -> Runtime:
        loading = self._blame.begin(self._mark, timed=False)
        try:
            path = file_path(self.spec, self.variant.artifact.digest)
            return open_runtime(self.variant.format, path, self._threads)
        finally:
            self._blame.end(loading)


# Operators that compute in integers, or turn reals into them.
_INTEGER_OPERATORS = re.compile(rb"QuantizeLinear|QLinear|(?:MatMul|Conv)Integer")


def _finite_only(variant: Variant, path: str) -> bool:
    """Whether NaN and infinity would come out as a plausible answer.

    That is so wherever reals become integers inside. In ONNX the operators tell; a TFLite model
    does not tell in a way that is safe to read, so each is taken for one that does.
    """
    if variant.format != "onnx":
        return True
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return _INTEGER_OPERATORS.search(data) is not None


def read_manifest(spec: ModelSpec) -> Manifest:
    """Return the manifest of a model to load.

    Raises:
        CannotRunError: it cannot be read or is another's.
    """
    try:
        data = Path(spec.manifest_path).read_bytes()
    except OSError as error:
        raise CannotRunError(Reason.IO_ERROR, f"manifest: {error}") from error
    # First: these are the bytes that the daemon has checked, and it is not done again.
    if digest_of(data) != spec.manifest:
        raise CannotRunError(
            Reason.DIGEST_MISMATCH, f"manifest: expected {spec.manifest}, got {digest_of(data)}"
        )
    try:
        manifest = decode(Manifest, data)
    except DecodeError as error:
        raise CannotRunError(Reason.BAD_MANIFEST, str(error)) from error
    if (manifest.model, manifest.version) != (spec.model, spec.version):
        raise CannotRunError(
            Reason.BAD_MANIFEST, f"expected {spec.model}@{spec.version}, got {manifest.ref}"
        )
    return manifest


def file_path(spec: ModelSpec, digest: str) -> str:
    """Return where the bytes of `digest` lie.

    Raises:
        CannotRunError: they are not among the model's files.
    """
    path = spec.files.get(digest)
    if path is None or not Path(path).is_file():
        raise CannotRunError(Reason.IO_ERROR, f"{digest}: expected a file, got {path or 'none'}")
    return path


def variant_of(manifest: Manifest, spec: ModelSpec) -> Variant:
    """Return the variant to load.

    Raises:
        CannotRunError: there is none of that name.
    """
    try:
        return manifest.variant(spec.variant)
    except KeyError:
        names = ", ".join(variant.name for variant in manifest.variants)
        raise CannotRunError(
            Reason.BAD_MANIFEST, f"variant: expected one of {names}, got {spec.variant}"
        ) from None


def _labels(manifest: Manifest, spec: ModelSpec) -> list[str]:
    if manifest.labels is None:
        return []
    try:
        text = Path(file_path(spec, manifest.labels.digest)).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CannotRunError(
            Reason.BAD_MANIFEST, f"{manifest.labels.name}: expected UTF-8: {error}"
        ) from error
    return text.splitlines()


def _order(
    kind: str, variant: Variant, wanted: tuple[TensorSpec, ...], ports: tuple[Port, ...]
) -> list[int]:
    """Return for each tensor of the manifest's variant its place in the model file."""
    places = {port.name: place for place, port in enumerate(ports)}
    if variant.format == "tflite" and set(places).isdisjoint(spec.name for spec in wanted):
        # The manifest has the names of the file's signature, and the order of its tensors.
        places = {spec.name: place for place, spec in enumerate(wanted)}
    if len(ports) != len(wanted) or set(places) != {spec.name for spec in wanted}:
        raise CannotRunError(
            Reason.BAD_MANIFEST,
            f"{kind}s: the manifest has {[spec.name for spec in wanted]}, "
            f"the model file has {[port.name for port in ports]}",
        )
    for spec in wanted:
        port = ports[places[spec.name]]
        # Of an output the runtime may know more than the file says.
        left_open = kind == "output" and _fits(port.shape, spec.shape)
        if spec.datatype != port.datatype or not (left_open or _fits(spec.shape, port.shape)):
            raise CannotRunError(
                Reason.BAD_MANIFEST,
                f"{kind} {spec.name}: the manifest has {spec.datatype} {list(spec.shape)}, "
                f"the model file has {port.datatype} {list(port.shape)}",
            )
    return [places[spec.name] for spec in wanted]


def _sorter(order: list[int]) -> Callable[[list[Array]], list[Array]]:
    """Return what puts tensors in another order: the first is that at `order[0]`."""
    if order == sorted(order):
        return lambda arrays: arrays
    return lambda arrays: [arrays[place] for place in order]


def _fits(said: tuple[int, ...], made: tuple[int, ...]) -> bool:
    """Whether a manifest's shape agrees with a file's; a file for one row serves any batch."""
    if len(said) != len(made):
        return not (said and made)  # a file may leave an output's shape open
    return all(
        b in (a, -1) or (place == 0 and (a, b) == (-1, 1))
        for place, (a, b) in enumerate(zip(said, made, strict=True))
    )


def _one_row_only(manifest: Manifest, variant: Variant, runtime: Runtime) -> bool:
    """Whether apps may send a batch and the model file takes one row at a time.

    Raises:
        CannotRunError: the manifest's shapes are not those of its variant.
    """
    for theirs, mine in ((manifest.inputs, variant.inputs), (manifest.outputs, variant.outputs)):
        for spec, inner in zip(theirs, mine, strict=True):
            if not _fits(spec.shape, inner.shape):
                raise CannotRunError(
                    Reason.BAD_MANIFEST,
                    f"{spec.name}: expected the variant's shape {list(inner.shape)}, "
                    f"got {list(spec.shape)}",
                )
    return all(spec.shape[:1] == (-1,) for spec in manifest.inputs) and any(
        port.shape[:1] == (1,) for port in runtime.inputs
    )


def _scores_output(manifest: Manifest) -> int | None:
    """Return which output holds the scores, None when there are no classes."""
    if manifest.task.kind != "classification":
        return None
    names = [spec.name for spec in manifest.outputs]
    name = manifest.task.scores or names[0]
    if name not in names or not manifest.outputs[names.index(name)].shape:
        raise CannotRunError(
            Reason.BAD_MANIFEST,
            f"task: scores: expected an output of shape (batch, classes), got {name}",
        )
    return names.index(name)


def _step(manifest: Manifest, variant: Variant, scores: int | None) -> tuple[float, int] | None:
    """Return scale and zero point of integer scores."""
    if scores is None:
        return None
    given = variant.outputs[scores].quantization or manifest.outputs[scores].quantization
    if given is None or len(given.scale) != 1 or len(given.zero_point) != 1:
        return None
    return given.scale[0], given.zero_point[0]
