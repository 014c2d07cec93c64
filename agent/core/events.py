"""All that can happen to an agent, as values. The shell makes them; `step` takes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.control import Loaded, Tally, Window
from agent.core.imports import Imported
from agent.core.state import Journal
from wire.choice import Operators
from wire.command import Command
from wire.manifest import Manifest
from wire.telemetry import Health
from wire.transfer import ChunkFrame
from wire.twin import Capabilities, Desired, Reason


@dataclass(frozen=True, slots=True)
class Booted:
    """The agent started: what its journal said, and which blobs lie whole on disk."""

    journal: Journal
    capabilities: Capabilities
    blobs: frozenset[str]
    sequence: int = 0
    """Of the last telemetry item that was ever queued, and the last acknowledged one."""
    acked: int = 0
    gap_since: int | None = None
    """Since when counts are missing, in unix seconds: an earlier run ended uncleanly."""
    imports: tuple[Imported, ...] = ()
    """Of bundles; their files are among the blobs."""
    operators: Operators = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker answered and our subscriptions are in place."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The broker is gone; the link keeps trying by itself."""


@dataclass(frozen=True, slots=True)
class DesiredCame:
    """A desired document whose seal was verified."""

    desired: Desired


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that was not followed, and why; the sender's fault."""

    text: str


@dataclass(frozen=True, slots=True)
class ReportHeard:
    """The broker acknowledged a report: all that it sent us before lies behind us."""


@dataclass(frozen=True, slots=True)
class FramesCame:
    """Chunks, unverified, of the transfer whose index has this digest, in the order they came."""

    index: str
    frames: tuple[ChunkFrame, ...]


@dataclass(frozen=True, slots=True)
class FrameBroken:
    """What came on a transfer's topic is no frame at all."""

    index: str
    text: str


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """A chunk from the source at `url`, unverified."""

    url: str
    index: str
    frame: ChunkFrame


@dataclass(frozen=True, slots=True)
class SourceFailed:
    """The source at `url` did not send what it was asked for."""

    url: str
    detail: str


@dataclass(frozen=True, slots=True)
class AckCame:
    """The controller committed our telemetry up to here."""

    seq: int


@dataclass(frozen=True, slots=True)
class CommandCame:
    """A command whose seal was verified."""

    command: Command


@dataclass(frozen=True, slots=True)
class TwinSeen:
    """Another agent speaks with our device id."""

    nonce: str
    since: int


@dataclass(frozen=True, slots=True)
class TransferOpened:
    """A partial on disk is ready for writing.

    `index` is the whole verified index if it was there already, `present` the data chunks
    whose bytes on disk were hashed and found right.
    """

    transfer: str
    index: bytes
    present: frozenset[int]


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """The disk refused a partial; it was closed. `reason` no_space or io_error."""

    transfer: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class BlobStored:
    """A file is decoded, hashed, fsynced and in its slot."""

    file: str


@dataclass(frozen=True, slots=True)
class BlobRefused:
    """A finished transfer did not become the file that was promised; it was deleted."""

    file: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class ManifestRead:
    """A release manifest from its slot; None with the reason when it cannot be read."""

    digest: str
    manifest: Manifest | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SpaceMeasured:
    """Free bytes for artifacts, those of partials among them, and what each whole file takes."""

    free_bytes: int
    sizes: Mapping[str, int]
    """Digest -> bytes."""
    memory_free_bytes: int = 0
    """Main memory for engines, what those of today hold included; 0: not known."""


@dataclass(frozen=True, slots=True)
class MemoryMeasured:
    """Memory that a further process may take, and what each engine takes of its own."""

    available_bytes: int
    engines: Mapping[int, int]
    """Generation -> bytes."""
    sizes: Mapping[str, int]
    """File digest -> bytes, of all files on disk."""


@dataclass(frozen=True, slots=True)
class BundleReady:
    """Somebody imported a bundle; its files wait to be moved into the slots."""


@dataclass(frozen=True, slots=True)
class ImportsTaken:
    """All imports that are kept, and which of their files lie whole in their slots."""

    imports: tuple[Imported, ...]
    blobs: frozenset[str]


@dataclass(frozen=True, slots=True)
class EngineReady:
    """A generation passed its trial and waits for orders."""

    generation: int
    models: tuple[Loaded, ...]


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """A generation said why it cannot go on."""

    generation: int
    model: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class EngineHung:
    """A run took too long and was stopped; its generation goes on."""

    generation: int
    model: str
    detail: str


@dataclass(frozen=True, slots=True)
class EngineExited:
    """A generation's process is gone. `code` negative: by that signal."""

    generation: int
    code: int
    model: str = ""
    """The model that was being invoked, when the engine left word of it."""
    detail: str = ""
    """The last line it wrote to its standard error, for people."""


@dataclass(frozen=True, slots=True)
class ScoresCame:
    """Counts from a generation."""

    generation: int
    windows: tuple[Window, ...]
    tallies: tuple[Tally, ...]


@dataclass(frozen=True, slots=True)
class HealthSampled:
    """A health report, still without its sequence number."""

    health: Health


@dataclass(frozen=True, slots=True)
class ReportsDropped:
    """The outbox had no room for these, and nobody was told yet."""

    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SampleAckCame:
    """The controller says what it has of the samples, in a document that is still to be read."""

    body: bytes


@dataclass(frozen=True, slots=True)
class ConsentWithdrawn:
    """What was captured of a model, for one order, is deleted: its consent is gone."""

    model: str
    request: str
    deleted: int


@dataclass(frozen=True, slots=True)
class CaptureOver:
    """Nothing is captured any more, and nothing is left to be sent."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed. Sent when `next_wake` said so, or more often; never harmful."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A signal asks the agent to end cleanly."""


Event = (
    Booted
    | Connected
    | Disconnected
    | DesiredCame
    | Refused
    | ReportHeard
    | FramesCame
    | FrameBroken
    | SourceFrame
    | SourceFailed
    | AckCame
    | CommandCame
    | TwinSeen
    | TransferOpened
    | TransferFailed
    | BlobStored
    | BlobRefused
    | ManifestRead
    | SpaceMeasured
    | MemoryMeasured
    | BundleReady
    | ImportsTaken
    | EngineReady
    | EngineFailed
    | EngineHung
    | EngineExited
    | ScoresCame
    | HealthSampled
    | ReportsDropped
    | SampleAckCame
    | ConsentWithdrawn
    | CaptureOver
    | Ticked
    | StopAsked
)
