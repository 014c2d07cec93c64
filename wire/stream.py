"""How a model is fed that listens: frames of a sound in their order, and state between them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from wire.codec import Part
from wire.schema import Field, model_validator

if TYPE_CHECKING:
    from wire.manifest import TensorSpec

Name = Annotated[str, Field(min_length=1, max_length=200)]
Length = Annotated[int, Field(ge=1, le=2**20)]


class Carry(Part):
    """State: what an output says after one frame, an input is given with the next."""

    output: Name
    input: Name


class Features(Part):
    """What turns samples into rows of numbers, which the model takes in their place."""

    extractor: Literal["pymicro-features"]
    """TensorFlow Lite Micro's audio front end: 40 numbers every 10 ms, at 16 kHz."""
    version: Annotated[str, Field(pattern=r"^\d{1,6}(\.\d{1,6}){0,2}$")]
    """Such as `2.0`: of the installed one, so many leading numbers must be the same."""

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return 40


class Stream(Part):
    """How sound becomes frames. Lengths count samples, or rows where there are features."""

    name: Name = "audio"
    """What apps call their samples in a request; INT16, FP32 or BYTES, one channel."""
    tensor: Name | None = None
    """The model's input that takes frames; None: the only one that nothing else feeds."""
    rate_hz: Annotated[int, Field(ge=1000, le=384_000)]
    frame: Length
    """What is new to a run, at the first run at least."""
    hop: Length | None = None
    """How far the next frame is from the one before; None: a frame, so that none overlap."""
    context: Annotated[int, Field(ge=0, le=2**20)] = 0
    """What is put before each frame again, of what came before it; zeros before the first."""
    state: Literal["internal"] | Annotated[tuple[Carry, ...], Field(max_length=32)] = ()
    """`internal`: the model hides it, so that each stream needs an interpreter of its own."""
    constants: Annotated[dict[Name, int | float], Field(max_length=32)] = {}
    """Input -> the number that it is filled with at every run."""
    features: Features | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Where the model answers one score: from here on it is the second class, else the first."""
    idle_s: Annotated[int, Field(ge=1, le=3600)] = 60
    """A stream without a frame for so long is over."""

    @model_validator(mode="after")
    def _agree(self) -> "Stream":
        if self.step > self.frame:
            raise ValueError(
                f"stream.hop: expected at most a frame, {self.frame}, got {self.step}; "
                "samples in between would be heard by nobody"
            )
        if self.features is not None and self.rate_hz != 16_000:
            raise ValueError(
                f"stream.rate_hz: expected 16000 as {self.features.extractor} takes, "
                f"got {self.rate_hz}"
            )
        return self

    @property
    def step(self) -> int:
        """The hop."""
        return self.hop or self.frame

    @property
    def window(self) -> int:
        """How much a run is given: the context and a frame."""
        return self.context + self.frame

    @property
    def carries(self) -> tuple[Carry, ...]:
        """The pairs of state; none where it is internal."""
        return () if self.state == "internal" else self.state

    def frames(self, inputs: Sequence["TensorSpec"]) -> "TensorSpec":
        """Return the input that takes the frames.

        Raises:
            ValueError: inputs are left that nothing feeds, or are fed twice.
        """
        fed = [*self.constants, *(carry.input for carry in self.carries)]
        rest = [spec for spec in inputs if spec.name not in fed]
        if len(rest) != 1 or len(fed) != len(inputs) - 1 or self.tensor not in (None, rest[0].name):
            raise ValueError(
                f"stream: expected state, constants and one tensor for the frames to feed each of "
                f"{[spec.name for spec in inputs]} once, got {[*fed, self.tensor or '(frames)']}"
            )
        return rest[0]

    def check(self, inputs: Sequence["TensorSpec"], outputs: Sequence["TensorSpec"]) -> None:
        """Compare with a model's tensors.

        Raises:
            ValueError: they do not go together; the message says what was expected.
        """
        spec = self.frames(inputs)
        wanted = (
            [1, self.window] if self.features is None else [1, self.window, self.features.width]
        )
        quantized = spec.quantization is not None and len(spec.quantization.scale) == 1
        if not _fits(spec, wanted) and not (self.features is None and _fits(spec, wanted[1:])):
            raise ValueError(
                f"stream: input {spec.name}: expected shape {wanted} for context and frame, "
                f"got {list(spec.shape)}"
            )
        if spec.datatype not in ("FP32", "INT16") and not (
            spec.datatype in ("INT8", "UINT8") and quantized
        ):
            raise ValueError(
                f"stream: input {spec.name}: expected FP32, INT16 or quantized INT8 or UINT8, "
                f"got {spec.datatype}"
            )
        answers = {output.name: output for output in outputs}
        takes = {given.name: given for given in inputs}
        for carry in self.carries:
            said, wants = answers.get(carry.output), takes[carry.input]
            if said is None:
                raise ValueError(
                    f"stream.state: expected an output among {list(answers)}, got {carry.output}"
                )
            if said.datatype != wants.datatype or not _fits(said, wants.shape):
                raise ValueError(
                    f"stream.state: {carry.output}: expected {wants.datatype} "
                    f"{list(wants.shape)} as {carry.input} takes, got {said.datatype} "
                    f"{list(said.shape)}"
                )
        if len({carry.output for carry in self.carries}) == len(outputs):
            raise ValueError("stream.state: expected an output that is no state, got none")


def _fits(spec: "TensorSpec", shape: Sequence[int]) -> bool:
    return len(spec.shape) == len(shape) and all(
        -1 in (mine, other) or mine == other for mine, other in zip(spec.shape, shape, strict=True)
    )
