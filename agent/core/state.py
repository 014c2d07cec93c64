"""All that an agent knows: what survives a restart (Journal) and what does not (AgentState)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from wire.manifest import Manifest
from wire.twin import Capabilities, Desired, DesiredRelease, Finding, Phase, Reason

if TYPE_CHECKING:
    from agent.control import Tally
    from agent.core.download import Download
    from agent.core.events import MemoryMeasured
    from agent.core.imports import Imported
    from wire.choice import Operators

Purpose = Literal["rollout", "rollback", "fallback"]
Key = tuple[str, str, str]
"""Rollout, purpose and release digest: what makes a deployment that one and no other."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A release on this device, with the variant it takes and every file it needs."""

    model: str
    version: int
    manifest: str
    variant: str
    files: tuple[str, ...]
    """Digests of all files it needs to run, the manifest's own among them."""
    rollout: str
    since: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """One attempt to bring a release to this device."""

    model: str
    version: int
    manifest: str
    rollout: str
    purpose: Purpose
    phase: Phase
    since: float
    """When the phase began, unix seconds."""
    attempts: int = 0
    """How often its engine was started; journalled before each start."""
    variant: str = ""
    files: tuple[str, ...] = ()
    reason: Reason | None = None
    detail: str = ""
    labelled_pairs: int = 0
    worse: int = 0
    better: int = 0
    finding: Finding | None = None
    """Frozen once, at a fixed number of pairs; journalled, so that no restart chooses another."""

    @property
    def key(self) -> Key:
        """What makes it this deployment and no other."""
        return (self.rollout, self.purpose, self.manifest)


@dataclass(frozen=True, slots=True)
class Journal:
    """What must survive power loss. Everything else is derived from it and from the blobs."""

    desired: Desired | None = None
    champions: dict[str, Installed] = field(default_factory=dict)
    """Model -> what serves."""
    previous: dict[str, Installed] = field(default_factory=dict)
    """Model -> what served before, kept whole for the way back."""
    deployments: dict[str, Deployment] = field(default_factory=dict)
    """Model -> the latest."""
    refused: tuple[Key, ...] = ()
    """Deployments that ended badly, oldest first: the same rollout never tries them again."""
    crashes: dict[str, int] = field(default_factory=dict)
    """Model -> engine crashes blamed on its champion since it last ran well."""
    commands: tuple[str, ...] = ()
    """Ids of recent commands, oldest first."""
    pinned: tuple[Installed, ...] = ()
    """What served once and is kept because the configuration pins it, oldest first."""
    local: dict[str, DesiredRelease] = field(default_factory=dict)
    """Model -> the order that came in a bundle, until the controller has another wish."""

    def wanted(self) -> dict[str, DesiredRelease]:
        """Return the order that counts for each model."""
        releases = self.desired.releases if self.desired is not None else ()
        return {release.model: release for release in releases} | self.local


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment, in seconds. Deadlines rest on `mono`; reports show `wall`."""

    mono: float
    wall: float
    local_s: float = 0.0
    """Since midnight on the device's own clock: windows of the day rest on it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration tells the core."""

    device: str
    boot: str
    """New with every start of the agent; also its nonce on the status topic."""
    version: str
    started: int
    """Unix seconds."""
    labels: dict[str, str] = field(default_factory=dict)
    api: tuple[str, ...] = ()
    window_s: float = 60.0
    health_s: float = 60.0
    window_chunks: int = 32
    rate_bytes_s: int = 0
    windows: tuple[str, ...] = ()
    """When this device may fetch, whatever the order says."""
    pins: frozenset[tuple[str, int]] = frozenset()
    """(model, version) of releases to keep once they served here."""
    quota_bytes: int = 0
    """What all artifacts together may take; 0: no quota."""
    memory_bytes: int = 0
    """What an engine may take beyond its own code; 0: no limit."""
    memory_reserve_bytes: int = 0
    """What a second engine must leave free to come up beside the first."""
    shared: bool = True
    """Whether to listen to the frames that go to a whole wave."""
    consents: frozenset[str] = frozenset()
    """Models of which inputs may be captured and sent, when somebody asks."""


Role = Literal["next", "serving", "challenger", "ending"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One engine process: what it holds, and what it is for.

    `next` serves as soon as it is ready; `challenger` carries one deployment's release beside
    the other champions, so that it can take over as it stands.
    """

    number: int
    models: tuple[Installed, ...]
    role: Role
    started: float
    """Monotonic."""
    ready: bool = False
    runtimes: dict[str, str] = field(default_factory=dict)
    """Model -> runtime and version, once ready."""
    fallbacks: dict[str, str] = field(default_factory=dict)
    """Model -> why it runs on the processor although an accelerator is configured."""


@dataclass(slots=True)
class AgentState:
    """All that an agent knows. `step` works on a copy; fields are replaced, never changed within.

    The exception is `download`, which handles every frame and is changed in place.
    """

    settings: Settings
    journal: Journal = field(default_factory=Journal)
    booted: bool = False
    stopping: bool = False
    online: bool = False
    capabilities: Capabilities = field(default_factory=Capabilities)
    operators: Operators = field(default_factory=dict)
    blobs: frozenset[str] = frozenset()
    manifests: dict[str, Manifest] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    imports: dict[str, Imported] = field(default_factory=dict)
    """Model -> what a bundle brought and nobody asked for yet."""

    download: Download | None = None
    spoilt: frozenset[str] = frozenset()
    """Index digests of deltas that did not become their file: those go another way."""
    sources_resting: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Origin of a source -> failures in a row, and when it may be asked again, monotonic."""
    finishing: str = ""
    """Digest of the file whose finished transfer is being decoded and moved into its slot."""
    report_owed_at: float | None = None
    """When the oldest report was published that the broker did not acknowledge, monotonic."""
    report_owed_bytes: int = 0
    """What the download had heard by then."""
    measured: bool = False
    """Free space was asked for in this preflight."""
    fetch_at: float = 0.0
    """When it is this device's turn to fetch, monotonic: not all devices of a wave at once."""
    waiting: bool = False
    """The active deployment fetches nothing on purpose; its detail says why."""
    transfer_bytes: int = 0
    chunks_bad: int = 0
    speed: float = 0.0
    """Bytes a second that came lately, as of `speed_mark`: (monotonic, transfer_bytes)."""
    speed_mark: tuple[float, int] = (0.0, 0)

    generations: dict[int, Generation] = field(default_factory=dict)
    last_generation: int = 0
    restart_at: float | None = None
    """When to start serving again after a crash, monotonic."""
    restart_wanted: bool = False
    """A fresh engine is to take over from the serving one."""
    making_way: str = ""
    """What the serving engine ended for, as there was no room for two: a release digest, or
    "restart"; empty once somebody serves again."""
    memory: MemoryMeasured | None = None
    """As measured for this very step."""
    engine_failures: int = 0
    """In a row, for the backoff."""
    engine_restarts: int = 0
    settled_at: float | None = None
    """When a serving engine will have run long enough to forget earlier crashes."""

    tally: Tally | None = None
    """The latest word on the probation under way."""
    phase_since: float = 0.0
    """When the active deployment's phase began, monotonic."""
    last_report: float = -1e9
    reports: int = 0
    """How many were published since start."""
    report_wanted: bool = False
    """Something changed that an operator or a rollout waits for."""
    progress_wanted: bool = False
    """Only figures moved: reported at leisure."""
    figures_alone: int = 0
    """Reports in a row for which nothing but figures had moved."""
    next_window: float = 0.0
    next_health: float = 0.0
    next_collect: float = 0.0
    next_tally: float = 0.0
    next_look: float | None = None
    """When to look at what was captured; None: nothing is."""
    sequence: int = 0
    """Of the last telemetry item."""
    acked: int = 0
    send_at: float | None = None
    """When the next batch of it goes out, or the last one again, monotonic; None: all is said."""
    send_ahead: bool = False
    """Whether the newest report may overtake a backlog then: somebody listens, it seems."""
    resend_wait: float = 20.0
    sends: int = 0
    clock_offset: float | None = None
    """Of the wall clock from the monotonic one, at the latest health report."""
    clock_stepped_s: float = 0.0
    """How far the wall clock was set since start, either way."""
    twin_yields: int = 0

    @property
    def shared_wanted(self) -> bool:
        """Whether the controller sends frames to whole waves."""
        return self.journal.desired is None or self.journal.desired.shared

    def generation(self, role: Role) -> Generation | None:
        """Return the generation with this role; there is at most one, `ending` apart."""
        for generation in self.generations.values():
            if generation.role == role:
                return generation
        return None

    def active(self) -> Deployment | None:
        """Return the deployment whose turn it is: the oldest that is not over."""
        pending = [d for d in self.journal.deployments.values() if not d.phase.final]
        return min(pending, key=lambda d: (d.phase is Phase.QUEUED, d.since), default=None)
