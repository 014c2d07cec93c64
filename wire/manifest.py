"""A release: what it is for, the variants it comes in, and what it was measured to be."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from wire.codec import Document, Part, encode
from wire.ids import Digest, ModelName, PlainName, ReleaseRef, Version, digest_of
from wire.schema import AfterValidator, Field, model_validator
from wire.stream import Stream
from wire.task import Task

DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
)  # fmt: skip
"""Tensor element types by their Open Inference Protocol names."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip
Format = Literal["onnx", "tflite"]
Size = Annotated[int, Field(ge=0, le=2**43)]


def check_source(value: str) -> str:
    """Return `value` when it is the address of a place that serves transfers by digest.

    Raises:
        ValueError: not https (http: this machine alone), or without `{digest}` in its path.
    """
    parts = urlsplit(value)
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError(f"expected https://HOST/PATH/{{digest}}, got {value[:80]!r}")
    if not parts.hostname or "@" in parts.netloc or parts.fragment or parts.port == 0:
        raise ValueError(f"expected a host and no user or fragment, got {value[:80]!r}")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"expected a URL of plain characters, got {value[:80]!r}")
    rest = value.replace("{digest}", "")
    if parts.path.count("{digest}") != 1 or value.count("{digest}") != 1 or "{" in rest:
        raise ValueError(f"expected {{digest}} once, in the path, got {value[:80]!r}")
    return value


SourceUrl = Annotated[str, Field(max_length=300), AfterValidator(check_source)]


class Quantization(Part):
    """How integers stand for reals: real = scale * (integer - zero_point), per axis if many."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


class TensorSpec(Part):
    """One input or output: its name, element type, shape (-1: any) and quantization."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    datatype: Datatype
    shape: Annotated[tuple[Annotated[int, Field(ge=-1)], ...], Field(max_length=16)]
    quantization: Quantization | None = None


class File(Part):
    """Bytes that belong to a release, by plain name and digest."""

    name: PlainName
    digest: Digest
    size_bytes: Size


class Requires(Part):
    """What a device must have to run a variant; read from the model file at push."""

    onnx_ir: int | None = None
    onnx_opsets: dict[str, int] = {}
    tflite_operators: dict[str, int] = {}
    """Built-in operator name -> its version."""
    custom_operators: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    """Machine names as in `uname -m`; empty: any."""
    runtimes: dict[str, str] | None = None
    """Runtimes that may run it -> their oldest version; None: any that reads the format."""
    memory_bytes: Annotated[int, Field(ge=0)] | None = None
    """Estimate of the peak that one run takes beyond an engine without a model."""


class Budget(Part):
    """What a device may spend on a model; a trial refuses one that takes more."""

    invoke_ms: Annotated[float, Field(gt=0)] | None = None
    """Median of a golden sample's run."""
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """Proportional set size that the model adds to its engine."""
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    """What an app should wait for an answer at most: longer ones are counted as SLO misses, and
    refuse nobody."""


class Variant(Part):
    """One form of the model. A device takes the first variant in the manifest it can run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,39}$")]
    format: Format
    artifact: File
    requires: Requires = Requires()
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=64)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=64)]
    golden_tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Largest absolute difference of an output element from the golden answer."""
    golden_flips: Annotated[int, Field(ge=0)] = 0
    """How many golden samples may change their class: 8-bit kernels differ by one step."""


class FeatureBaseline(Part):
    """Reference bins of one feature: n + 1 ascending edges, n counts, and what fell outside.

    A bin holds what is at its lower edge and below its upper one; the last one its upper edge too.
    """

    name: str
    """`confidence`, `INPUT.mean` and so on: see `wire.features`."""
    edges: Annotated[tuple[float, ...], Field(min_length=2, max_length=65)]
    counts: tuple[Annotated[int, Field(ge=0)], ...]
    nan: Annotated[int, Field(ge=0)] = 0
    outside: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _agree(self) -> "FeatureBaseline":
        if len(self.counts) != len(self.edges) - 1:
            raise ValueError(
                f"feature {self.name}: expected {len(self.edges) - 1} counts between "
                f"{len(self.edges)} edges, got {len(self.counts)}"
            )
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"feature {self.name}: expected edges that ascend")
        return self


class Baseline(Part):
    """The reference that live data is compared with, as counts over `samples` samples."""

    samples: Annotated[int, Field(ge=1)]
    features: Annotated[tuple[FeatureBaseline, ...], Field(max_length=64)] = ()
    predicted: tuple[Annotated[int, Field(ge=0)], ...] = ()
    every: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Of live requests one in so many is compared, where they come in rows that are alike, as the
    pictures of a film are. None: all, or 1 in 11 where a feature is of a whole tensor, or of a
    model that listens."""


class Manifest(Document):
    """A named, numbered release. Its digest is that of its encoded bytes."""

    model: ModelName
    version: Version
    description: Annotated[str, Field(max_length=2000)] = ""
    parent: Annotated[str, Field(max_length=60)] | None = None
    """The release this one was trained from, `name@version`."""
    task: Task = Task()
    stream: Stream | None = None
    """None: every request stands for itself."""
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=64)]
    """Names that apps use; a variant's own tensors match them by position."""
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=64)]
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=16)]
    labels: File | None = None
    """One label a line, UTF-8."""
    golden: File | None = None
    """NumPy .npz: `input_0`..., the expected `output_0`..., and optionally `label` (int64)."""
    calibration: Annotated[tuple[tuple[float, float], ...], Field(max_length=64)] = ()
    """(raw confidence, observed accuracy) points, ascending: calibrated p by interpolation."""
    files: Annotated[tuple[File, ...], Field(max_length=16)] = ()
    baseline: Baseline | None = None
    metrics: dict[str, float] = {}
    budget: Budget | None = None
    sources: Annotated[tuple[SourceUrl, ...], Field(max_length=4)] | None = None
    """Where transfers can be had by ranges beside the broker, the best first."""

    @model_validator(mode="after")
    def _agree(self) -> "Manifest":
        for variant in self.variants:
            for mine, theirs in ((self.inputs, variant.inputs), (self.outputs, variant.outputs)):
                if [t.datatype for t in mine] != [t.datatype for t in theirs]:
                    raise ValueError(
                        f"variant {variant.name}: expected tensors of types "
                        f"{[t.datatype for t in mine]}, got {[t.datatype for t in theirs]}"
                    )
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"variant names must differ, got {names}")
        sizes: dict[str, int] = {}
        for file in self.all_files():
            if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
                raise ValueError(f"{file.name}: one digest with two sizes")
        self.task.check(self.inputs, self.outputs, {file.name for file in self.files})
        if self.stream is not None:
            if self.task.input is not None:
                raise ValueError("task.input: expected none beside a stream, which names its own")
            self.stream.check(self.inputs, self.outputs)
        return self

    @property
    def ref(self) -> ReleaseRef:
        """The release's name and version."""
        return ReleaseRef(self.model, self.version)

    @property
    def digest(self) -> str:
        """The release digest: that of the manifest's encoded bytes."""
        return digest_of(encode(self))

    def variant(self, name: str) -> Variant:
        """Return the variant called `name`.

        Raises:
            KeyError: there is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)

    def shared_files(self) -> tuple[File, ...]:
        """Return the files that every variant needs on the device."""
        return tuple(f for f in (self.labels, self.golden, *self.files) if f is not None)

    def all_files(self) -> tuple[File, ...]:
        """Return every file of the release, the variants' artifacts first."""
        return (*(variant.artifact for variant in self.variants), *self.shared_files())
