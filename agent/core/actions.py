"""All that an agent can do, as values. `step` makes them; the shell carries them out, in order."""

from dataclasses import dataclass

from agent.control import ModelSpec
from agent.core.state import Journal
from wire.command import CaptureOrder, CommandResult
from wire.telemetry import Item
from wire.transfer import FetchRequest, Offer
from wire.twin import Reported


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the log."""

    text: str
    level: str = "info"
    """info, warning or error."""


@dataclass(frozen=True, slots=True)
class SaveJournal:
    """Write the journal and fsync it before anything after this in the list is done."""

    journal: Journal


@dataclass(frozen=True, slots=True)
class PublishReported:
    """Publish our retained state."""

    reported: Reported


@dataclass(frozen=True, slots=True)
class PublishOnline:
    """Publish our retained status, online, with our nonce."""


@dataclass(frozen=True, slots=True)
class PublishFetch:
    """Ask for chunks."""

    request: FetchRequest


@dataclass(frozen=True, slots=True)
class PublishResult:
    """Answer a command."""

    verb: str
    result: CommandResult


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Put an item into the outbox, where it stays until it is acknowledged."""

    item: Item


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop everything up to `seq` from the outbox."""

    seq: int


@dataclass(frozen=True, slots=True)
class SendOutbox:
    """Send the oldest that waits in the outbox as one batch, for the first time or again."""

    ahead: bool = False
    """Of a backlog, send the newest health before."""


@dataclass(frozen=True, slots=True)
class MeasureSpace:
    """Answer with SpaceMeasured."""


@dataclass(frozen=True, slots=True)
class MeasureMemory:
    """Answer with MemoryMeasured before anything else."""


@dataclass(frozen=True, slots=True)
class OpenTransfer:
    """Open or create the partial of an offer; answer TransferOpened or TransferFailed."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Listen:
    """Subscribe to the frames of the transfer whose index has this digest.

    With `own`, from now on to those that are sent to this device alone.
    """

    index: str
    own: bool = False


@dataclass(frozen=True, slots=True)
class Unlisten:
    """Unsubscribe from them."""

    index: str


@dataclass(frozen=True, slots=True)
class FetchRange:
    """Ask the source at `url` for chunks; answers come as SourceFrame or SourceFailed."""

    url: str
    offer: Offer
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class CancelRange:
    """Let go of the range that is being fetched."""


@dataclass(frozen=True, slots=True)
class WriteIndex:
    """Keep a verified index beside its partial. Answer TransferFailed if the disk refuses."""

    transfer: str
    index: bytes


@dataclass(frozen=True, slots=True)
class WriteChunk:
    """Write a verified chunk at its place. Answer TransferFailed if the disk refuses."""

    transfer: str
    offset: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class FinishTransfer:
    """Decode, hash, fsync and move into the slot; answer BlobStored or BlobRefused."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class CloseTransfer:
    """Close a partial; its bytes stay for a later resume, or go when the garbage is taken out."""

    transfer: str


@dataclass(frozen=True, slots=True)
class ReadManifest:
    """Answer with ManifestRead."""

    digest: str


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """Delete every blob and partial that is not kept."""

    keep_files: frozenset[str]
    keep_transfers: frozenset[str]
    heard: frozenset[str]
    """Blobs the core knows of: one whose BlobStored is still on its way is not to be judged."""


@dataclass(frozen=True, slots=True)
class TakeImports:
    """Move what bundles brought into the slots; answer with ImportsTaken before anything else."""


@dataclass(frozen=True, slots=True)
class KeepOrder:
    """The order that came with this model's bundle is in the journal: ask no more for it."""

    model: str


@dataclass(frozen=True, slots=True)
class ForgetImport:
    """This model's bundle is not waited for any more."""

    model: str


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Start a generation and send it Load. `golden` False: a restart of proven models."""

    generation: int
    models: tuple[ModelSpec, ...]
    golden: bool
    background: bool
    """Low priority until it serves: a champion is answering meanwhile."""
    memory_bytes: int = 0
    """What it may take beyond its own code until it serves; 0: no limit."""


@dataclass(frozen=True, slots=True)
class ServeEngine:
    """Let a ready generation accept on the listening sockets."""

    generation: int


@dataclass(frozen=True, slots=True)
class StartShadow:
    """Let `champion` copy live inputs of `model` to `challenger`."""

    model: str
    champion: int
    challenger: int
    release: str
    """Digest of the challenger's release."""


@dataclass(frozen=True, slots=True)
class StopShadow:
    """End the copying."""

    model: str
    champion: int


@dataclass(frozen=True, slots=True)
class AskScores:
    """Ask a generation for its counts; answers come as ScoresCame."""

    generation: int
    windows: bool


@dataclass(frozen=True, slots=True)
class DrainEngine:
    """Let a generation finish what it has and exit."""

    generation: int
    streams: bool = False
    """Open streams may go on there for a while: another generation serves beside it."""


@dataclass(frozen=True, slots=True)
class KillEngine:
    """End a generation's process now. Its EngineExited still comes."""

    generation: int


@dataclass(frozen=True, slots=True)
class SampleHealth:
    """Answer with HealthSampled."""


@dataclass(frozen=True, slots=True)
class StartCapture:
    """Keep inputs that match an order, and send them; `request` is its command's id."""

    request: str
    order: CaptureOrder


@dataclass(frozen=True, slots=True)
class LookAtSamples:
    """Look at what was captured, and send what is due. CaptureOver follows the last of it."""


@dataclass(frozen=True, slots=True)
class HearSampleAck:
    """Take up what the controller has of the samples."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """Tell the service manager that the agent is up."""


@dataclass(frozen=True, slots=True)
class Yield:
    """Leave the broker for `seconds`: another agent with our id was there first."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Exit:
    """End the daemon after everything before this."""

    code: int = 0


Action = (
    Say
    | SaveJournal
    | PublishReported
    | PublishOnline
    | PublishFetch
    | PublishResult
    | Enqueue
    | Forget
    | SendOutbox
    | MeasureSpace
    | MeasureMemory
    | OpenTransfer
    | Listen
    | Unlisten
    | FetchRange
    | CancelRange
    | WriteIndex
    | WriteChunk
    | FinishTransfer
    | CloseTransfer
    | ReadManifest
    | CollectGarbage
    | TakeImports
    | KeepOrder
    | ForgetImport
    | StartEngine
    | ServeEngine
    | StartShadow
    | StopShadow
    | AskScores
    | DrainEngine
    | KillEngine
    | SampleHealth
    | StartCapture
    | LookAtSamples
    | HearSampleAck
    | Ready
    | Yield
    | Exit
)
