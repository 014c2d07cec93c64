"""What a simulated fleet is told of: the release before and the new one, and what is planted."""

from dataclasses import dataclass
from typing import Literal

from wire.codec import encode
from wire.ids import digest_of
from wire.manifest import File, Manifest, TensorSpec, Variant
from wire.task import Task
from wire.transfer import ChunkFrame, Offer, chunk_hash

MODEL = "digits"
CHUNK = 1024
ARTIFACT_CHUNKS = 4
T0 = 1_800_000_000.0


@dataclass(frozen=True)
class Plan:
    """What is simulated. Shares are 0 to 1, times seconds, rates a second."""

    devices: int = 10_000
    waves: tuple[str, ...] = ("30", "10%", "50%", "100%")
    seed: int = 1
    labelled_pairs: int = 300
    labels_per_s: float = 1.0
    disagree: float = 0.06
    """Of inputs on which the two releases disagree."""
    points: float = 0.0
    """Of accuracy that the new release loses, on devices that are hit."""
    hit: float = 1.0
    crash: float = 0.0
    """Of devices on which it cannot be loaded."""
    unlabelled: float = 0.0
    """Of devices that have no labels at all."""
    loss: float = 0.01
    """Of messages that have to be sent again, and of chunks that never arrive."""
    latency_s: float = 0.2
    artifact_bytes: int = 5_000_000
    line_bytes_s: int = 250_000
    slow: float = 0.05
    """Of devices with a twentieth of that line."""
    dead: float = 0.02
    """Of devices that are known and do not come back."""
    skew_s: float = 300.0
    """How wrong clocks are, at most, either way."""
    churn_s: float = 43_200.0
    """Between two losses of the line of one device, on the mean; 0: never."""
    partitions: int = 0
    """How often a tenth of all devices loses its line for ten minutes."""
    max_refused_percent: int | None = None
    judged_by: Literal["tests", "threshold"] = "tests"
    approve: bool = False
    """Let an operator approve every wave that holds."""

    grain_s: float = 10.0
    """An agent is woken no more often; it looks at its probation every second otherwise."""

    @property
    def bad(self) -> bool:
        """Whether the new release ought not to reach all."""
        return (self.points > 0 and self.hit > 0) or self.crash > 0


@dataclass(frozen=True)
class Made:
    """A release, and all that travels of it."""

    manifest: Manifest
    digest: str
    files: frozenset[str]
    offers: tuple[Offer, ...]
    frames: dict[str, tuple[bytes, bytes]]
    """Index digest -> index and data."""


def make(version: int) -> Made:
    """Make a small release; how large it is, is a matter of the time that chunks take."""
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    weights = f"{MODEL} {version} ".encode().ljust(CHUNK * ARTIFACT_CHUNKS, b".")
    variant = Variant(
        name="v", format="onnx", inputs=(tensor,), outputs=(tensor,),
        artifact=File(name="m.onnx", digest=digest_of(weights), size_bytes=len(weights)),
    )  # fmt: skip
    manifest = Manifest(
        model=MODEL, version=version, task=Task(kind="classification", scores="x"),
        inputs=(tensor,), outputs=(tensor,), variants=(variant,),
    )  # fmt: skip
    body = encode(manifest)
    bodies = (body, weights)
    indexes = [
        b"".join(chunk_hash(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))
        for data in bodies
    ]
    offers = tuple(
        Offer(
            file=digest_of(data), file_bytes=len(data), transfer=digest_of(data),
            transfer_bytes=len(data), index=digest_of(index), chunk_bytes=CHUNK,
        )
        for data, index in zip(bodies, indexes, strict=True)
    )  # fmt: skip
    frames = {o.index: (i, d) for o, i, d in zip(offers, indexes, bodies, strict=True)}
    return Made(manifest, digest_of(body), frozenset(map(digest_of, bodies)), offers, frames)


def frame(made: Made, index: str, part: str, number: int) -> ChunkFrame:
    """Return one chunk of a file or of its index."""
    data = made.frames[index][part == "data"]
    payload = data[number * CHUNK : (number + 1) * CHUNK]
    return ChunkFrame(part, number, payload)  # type: ignore[arg-type]
