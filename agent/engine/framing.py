"""Cutting a sound into frames, and running a model on one after another with state between."""

from collections.abc import Callable

import numpy as np

from agent.engine.features import Extractor
from agent.engine.runtimes import Array
from agent.engine.tasks.edges import to_tensor
from agent.engine.tensors import DTYPES
from wire.manifest import Manifest, TensorSpec, Variant

Run = Callable[[list[Array]], list[Array]]

FULL_SCALE = 32768.0
"""What an INT16 sample is divided by to be a FP32 one."""


class Framing:
    """What a manifest says about the frames of its model, ready for use by every stream."""

    def __init__(self, manifest: Manifest, variant: Variant) -> None:
        assert manifest.stream is not None
        self.stream = manifest.stream
        inputs = {spec.name: place for place, spec in enumerate(manifest.inputs)}
        outputs = {spec.name: place for place, spec in enumerate(manifest.outputs)}
        self.place = inputs[self.stream.frames(manifest.inputs).name]
        """The input that takes the frames."""
        self.carries = [
            (outputs[carry.output], inputs[carry.input]) for carry in self.stream.carries
        ]
        self.visible = tuple(place for place in outputs.values() if place not in dict(self.carries))
        """The outputs that are no state."""
        self._shapes = [
            tuple(1 if size == -1 else size for size in spec.shape) for spec in manifest.inputs
        ]
        self._dtypes = [DTYPES[spec.datatype] for spec in manifest.inputs]
        self.constants = {
            inputs[name]: np.full(self._shapes[inputs[name]], value, self._dtypes[inputs[name]])
            for name, value in self.stream.constants.items()
        }
        self.outputs = _edges(manifest.outputs, variant.outputs)
        self._spec = _edges(manifest.inputs, variant.inputs)[self.place]
        features = self.stream.features
        self._row = () if features is None else (features.width,)
        self._window_shape = (
            (self.stream.window,) if len(manifest.inputs[self.place].shape) == 1
            else (1, self.stream.window, *self._row)
        )  # fmt: skip

    @property
    def takes_integers(self) -> bool:
        """Whether samples are kept as INT16, the form that extractor or model takes."""
        return self.stream.features is not None or self._dtypes[self.place] == np.int16

    @property
    def hop_samples(self) -> int:
        """How many samples are between one run and the next."""
        return self.stream.step * (self.stream.rate_hz // 100 if self.stream.features else 1)

    def beginning(self) -> Array:
        """Return what is taken to have been heard before the first sample."""
        raw = self.takes_integers and self.stream.features is None
        return np.zeros((self.stream.context, *self._row), np.int16 if raw else np.float32)

    def initial_state(self) -> dict[int, Array]:
        """Return the inputs that carry state, as the first run is given them."""
        return {place: np.zeros(self._shapes[place], self._dtypes[place])
                for _, place in self.carries}  # fmt: skip

    def silence(self) -> list[Array]:
        """Return the inputs of a first run that hears nothing."""
        window = np.zeros((self.stream.window, *self._row), np.float32)
        return self.inputs(self.tensor(window), self.initial_state())

    def inputs(self, frame: Array, state: dict[int, Array]) -> list[Array]:
        """Return the inputs of a run, in the manifest's order."""
        given = {self.place: frame, **self.constants, **state}
        return [given[place] for place in range(len(given))]

    def tensor(self, window: Array) -> Array:
        """Return context and frame as the model takes them."""
        return to_tensor(window, self._spec).reshape(self._window_shape)

    def gather(self, answers: list[list[Array]], state: dict[int, Array]) -> list[Array]:
        """Return one answer for many frames: a row each, and the state after the last one."""
        carried = dict(self.carries)
        gathered: list[Array] = []
        for place, spec in enumerate(self.outputs):
            if place in carried:
                gathered.append(state[carried[place]])
                continue
            batched = spec.shape[:1] in ((1,), (-1,))
            rest = spec.shape[1:] if batched else spec.shape
            parts = [answer[place] if batched else answer[place][None] for answer in answers]
            none = np.empty((0, *(max(size, 1) for size in rest)), DTYPES[spec.datatype])
            gathered.append(np.concatenate(parts) if parts else none)
        return gathered


def _edges(public: tuple[TensorSpec, ...], inner: tuple[TensorSpec, ...]) -> list[TensorSpec]:
    """Return the manifest's tensors with the quantization of the variant's, where it has one."""
    return [
        mine.model_copy(update={"quantization": theirs.quantization or mine.quantization})
        for mine, theirs in zip(public, inner, strict=True)
    ]


class Listener:
    """One stream's memory: what is left of the sound, state, and what its features heard."""

    def __init__(self, framing: Framing, run: Run) -> None:
        self._framing = framing
        self._run = run
        self._state = framing.initial_state()
        self._heard = framing.beginning()
        features = framing.stream.features
        self._extractor = Extractor(features) if features is not None else None

    def hear(self, samples: Array) -> list[Array]:
        """Run every frame that INT16 or FP32 samples complete; return outputs, a row a frame.

        The outputs are in the manifest's order; in place of a state's stands the state.

        Raises:
            Exception: whatever the runtime raises; the stream cannot go on then.
        """
        framing = self._framing
        stream = framing.stream
        samples = _integers(samples) if framing.takes_integers else _reals(samples)
        rows = self._extractor.rows(samples) if self._extractor is not None else samples
        heard = np.concatenate([self._heard, rows])
        answers = []
        at = 0
        while at + stream.window <= len(heard):
            answers.append(self._answer(framing.tensor(heard[at : at + stream.window])))
            at += stream.step
        # A copy: a view would keep the whole request in memory.
        self._heard = heard[at:].copy()
        return framing.gather(answers, self._state)

    def _answer(self, frame: Array) -> list[Array]:
        outputs = self._run(self._framing.inputs(frame, self._state))
        for said, takes in self._framing.carries:
            self._state[takes] = outputs[said]
        return outputs


def _integers(samples: Array) -> Array:
    if samples.dtype == np.int16:
        return samples
    return (samples * FULL_SCALE).round().clip(-32768, 32767).astype(np.int16)


def _reals(samples: Array) -> Array:
    if samples.dtype == np.float32:
        return samples
    return samples.astype(np.float32) / np.float32(FULL_SCALE)
