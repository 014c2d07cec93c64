"""The device's twin: what it should run, and what it runs. Both are retained documents."""

from enum import StrEnum
from typing import Annotated, Literal

from wire.codec import Document, Part
from wire.ids import (
    Count,
    DeviceId,
    Digest,
    ModelName,
    ReleaseRef,
    RolloutId,
    UnixTime,
    Version,
)
from wire.manners import Manners
from wire.schema import Field
from wire.transfer import CHUNK_BYTES, Offer

Revision = Annotated[int, Field(ge=0, le=2**53)]


class Phase(StrEnum):
    """Where a deployment stands on a device."""

    QUEUED = "queued"
    PREFLIGHT = "preflight"
    FETCHING = "fetching"
    VERIFIED = "verified"
    TRIAL = "trial"
    PROBATION = "probation"
    COMMITTED = "committed"
    REJECTED = "rejected"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"

    @property
    def final(self) -> bool:
        """Whether the deployment is over."""
        return self in _FINAL


_FINAL = frozenset(
    {
        Phase.COMMITTED,
        Phase.REJECTED,
        Phase.FAILED,
        Phase.TIMED_OUT,
        Phase.ROLLED_BACK,
        Phase.SUPERSEDED,
    }
)


class Reason(StrEnum):
    """Why a deployment ended otherwise than wished, for machines; `detail` is for people."""

    NO_SPACE = "no_space"
    IO_ERROR = "io_error"
    WRONG_ARCH = "wrong_arch"
    NO_RUNTIME = "no_runtime"
    OPSET_TOO_NEW = "opset_too_new"
    UNSUPPORTED_OPERATOR = "unsupported_operator"
    BAD_MANIFEST = "bad_manifest"
    BAD_ARTIFACT = "bad_artifact"
    DIGEST_MISMATCH = "digest_mismatch"
    OUT_OF_MEMORY = "out_of_memory"
    LOAD_FAILED = "load_failed"
    GOLDEN_MISMATCH = "golden_mismatch"
    TOO_SLOW = "too_slow"
    CRASHED = "crashed"
    HUNG = "hung"
    WORSE_THAN_CHAMPION = "worse_than_champion"
    NO_EVIDENCE = "no_evidence"
    NO_PROGRESS = "no_progress"
    WITHDRAWN = "withdrawn"
    BAD_SIGNATURE = "bad_signature"
    STALE = "stale"


class Probation(Part):
    """How a challenger earns its place beside the champion. Integers, since this is signed."""

    labelled_pairs: Annotated[int, Field(ge=0, le=1_000_000)] = 300
    """Labelled inputs that both answered before a challenger may commit; 0: no probation."""
    margin_bp: Annotated[int, Field(ge=0, le=10_000)] = 100
    """How much worse is still acceptable, in basis points of accuracy."""
    evidence: Annotated[int, Field(ge=2, le=1_000_000)] = 20
    """The e-value at which a challenger is refused: 20 errs in at most 1 of 20 devices."""
    deadline_s: Annotated[int, Field(ge=1, le=90 * 86_400)] = 86_400
    at_deadline: Literal["refuse", "commit"] = "refuse"
    """What happens when labels or inputs were too few to decide by the deadline."""
    cpu_percent: Annotated[int, Field(ge=0, le=1_000_000)] = 300
    """Refused with more of the champion's processor time an input than this; 0: no limit."""
    finding_pairs: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """At how many labelled pairs, or as many as `labelled_pairs`, the finding is frozen; 0: never.
    """


class DesiredRelease(Part):
    """One model's release, and all a device needs to fetch it."""

    model: ModelName
    version: Version
    rollout: RolloutId
    purpose: Literal["rollout", "rollback"] = "rollout"
    manifest: Digest
    """The release digest. Its offer is among `offers`."""
    offers: Annotated[tuple[Offer, ...], Field(min_length=1, max_length=40)]
    probation: Probation = Probation()
    fetch_deadline_s: Annotated[int, Field(ge=10, le=90 * 86_400)] = 1800
    """Without a new chunk for this long, fetching fails with `no_progress`."""
    manners: Manners = Manners()

    @property
    def ref(self) -> ReleaseRef:
        """The release's name and version."""
        return ReleaseRef(self.model, self.version)


class Desired(Document):
    """What one device should run. Sealed; the higher revision wins, whatever the order."""

    device: DeviceId
    revision: Revision
    releases: Annotated[tuple[DesiredRelease, ...], Field(max_length=16)] = ()
    shared: bool = True
    """Frames go to whole waves; false: ask for them on the device's own topic."""


class Finding(Part):
    """Champion against challenger on one device, frozen once: what a fleet decides from."""

    pairs: Annotated[int, Field(ge=1, le=2**53)]
    worse: Count = 0
    better: Count = 0
    labelled: bool = True
    """False: committed without labels; then `worse` is every disagreement, the worst case."""


class DeploymentReport(Part):
    """How far one deployment is, or how it ended."""

    model: ModelName
    version: Version
    rollout: RolloutId
    purpose: Literal["rollout", "rollback", "fallback"] = "rollout"
    """`fallback`: the device returned to an earlier release by itself, after a commit."""
    manifest: Digest
    phase: Phase
    since: UnixTime
    """Unix seconds on the device's clock."""
    reason: Reason | None = None
    detail: Annotated[str, Field(max_length=500)] = ""
    variant: str | None = None
    bytes_done: Count = 0
    bytes_total: Count = 0
    bytes_per_s: Count = 0
    """How fast they come, lately."""
    waiting: bool = False
    """It fetches nothing on purpose, until its window opens, its turn comes, or the hold ends."""
    labelled_pairs: Count = 0
    worse: Count = 0
    better: Count = 0
    finding: Finding | None = None
    """Never changed once it is there; None: too few labelled pairs, or refused before."""


class Serving(Part):
    """The champion of one model, as it answers now."""

    model: ModelName
    version: Version
    manifest: Digest
    variant: str
    runtime: str
    """Name and version, such as `onnxruntime 1.32.0`; empty while its engine is down."""
    since: UnixTime
    fallback: str | None = None
    """Why it runs on the processor although an accelerator is configured."""


class Capabilities(Part):
    """What the device can run; runtimes were seen to construct an interpreter."""

    architecture: str = ""
    python: str = ""
    runtimes: dict[str, str] = {}
    """Runtime name -> version."""
    unusable: dict[str, str] = {}
    """Name of a runtime, accelerator or library -> why it is there and does not work."""
    libraries: dict[str, str] | None = None
    """What decodes pictures and extracts features of sound -> its version; None: not known."""
    max_chunk_bytes: Annotated[int, Field(ge=1024, le=1024 * 1024)] = CHUNK_BYTES
    """Of the largest chunk it takes; its broker may carry no longer messages."""
    memory_bytes: Count = 0
    cpus: Count = 0
    onnx_ir: int | None = None
    """The newest ONNX file format that its onnxruntime reads."""
    onnx_opsets: dict[str, int] = {}
    """Operator domain, `` for ai.onnx -> the newest version that its onnxruntime supports."""


class Reported(Document):
    """What one device runs."""

    device: DeviceId
    desired_revision: Revision
    """The highest desired revision this device has taken up: an acknowledgement."""
    agent: str
    """Version of farflung on the device."""
    boot: str
    """Changes with every start of the agent."""
    sequence: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Grows with every report of one boot, so that a late one is known as such; 0: not numbered."""
    labels: dict[str, str] = {}
    capabilities: Capabilities = Capabilities()
    serving: tuple[Serving, ...] = ()
    deployments: tuple[DeploymentReport, ...] = ()
    """The latest deployment of each model."""
    api: tuple[str, ...] = ()
    """Where apps on the device reach the engine."""
    refusals: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    """Recent instructions that were not followed (bad signature, malformed), newest last."""


class Status(Document):
    """Whether a device is there. The offline one is the agent's last will."""

    device: DeviceId
    online: bool
    nonce: str
    """New with every start of an agent: two agents with one id show two nonces."""
    since: UnixTime
    """When this agent started, unix seconds: of two with one id, the later one yields."""
