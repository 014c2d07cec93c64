"""What the controller's HTTP API says, as types: the API fills them, the command line reads them.

Fields are only ever added: `--json` prints these values, and scripts rest on them.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wire.manifest import Manifest
from wire.manners import BytesPerSecond, Spread, Windows
from wire.twin import Capabilities, DeploymentReport, Phase, Probation, Reason, Serving

MAX_RULES = 32


class Refusal(Exception):
    """The controller will not do what was asked, and says what would work."""

    def __init__(self, status: int, error: str, next_step: str = "") -> None:
        """Keep the HTTP status, what is wrong, and the next command to try."""
        super().__init__(error)
        self.status = status
        self.error = error
        self.next_step = next_step


class View(BaseModel):
    """A value of the HTTP API."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ErrorView(View):
    """The body of every refusal."""

    error: str
    next_step: str = ""


class HealthView(View):
    """Whether the controller works."""

    version: str
    broker_url: str
    broker_connected: bool
    devices: int
    devices_online: int
    chunks_published: int = 0
    """Since start, of all transfers; what several devices heard counts once."""
    chunk_bytes_published: int = 0
    chunks_refused: int = 0
    """Asked for and not sent: not theirs, or too often."""
    sender_cpu_s: float = 0.0
    """Since start: for requests for chunks, for chunks, and for the whole line to the broker."""
    alerts_firing: dict[str, int] = {}
    """How many, by severity."""


class VariantView(View):
    """One form of a release."""

    name: str
    format: str
    size_bytes: int


class ReleaseView(View):
    """A release in the store. `manifest` comes with `show` alone."""

    model: str
    version: int
    digest: str
    description: str
    parent: str | None
    variants: tuple[VariantView, ...]
    metrics: dict[str, float]
    pushed_at: float
    quarantined: str | None = None
    """Why no new rollout may bring it; None: one may."""
    manifest: Manifest | None = None


class BundleView(View):
    """What `fleet model export` wrote."""

    release: str
    """name@version."""
    path: str
    size_bytes: int
    device: str | None = None
    """The only one that takes it; None: any."""
    install: bool = False


class ScoreView(View):
    """What one release did on one device: totals since it was first seen there."""

    model: str
    version: int
    manifest: str
    variant: str
    requests: int
    errors: int
    p50_ms: float | None
    p95_ms: float | None
    labelled: int
    correct: int
    accuracy: float | None
    """Labelled accuracy, 0 to 1."""
    accuracy_low: float | None
    accuracy_high: float | None
    """95% Wilson interval; it holds within one device."""
    valued: int = 0
    """Answered numbers whose true value came, and how far off those were, in their own unit."""
    error_p50: float | None = None
    error_p95: float | None = None


class DeviceEventView(View):
    """Something that a device told of itself."""

    at: float
    """By the device's clock, if that is likely."""
    kind: str
    """gap, dropped, clock, deployment, crash, consent or other."""
    text: str


class DeviceView(View):
    """One device as the controller knows it."""

    id: str
    online: bool
    last_seen: float
    clash: bool = False
    """Two agents speak with this id."""
    agent: str = ""
    labels: dict[str, str] = {}
    capabilities: Capabilities = Capabilities()
    desired_revision: int = 0
    reported_revision: int = 0
    serving: tuple[Serving, ...] = ()
    deployments: tuple[DeploymentReport, ...] = ()
    api: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    health: dict[str, Any] | None = None
    """The latest wire.telemetry.Health, as JSON."""
    scores: tuple[ScoreView, ...] = ()
    alerts: tuple[str, ...] = ()
    """Those that fire and are about this device, in words."""
    missing: int = 0
    """Items of its telemetry that never came: dropped on the device, or lost with its disk."""
    events: tuple[DeviceEventView, ...] = ()
    """The latest that it told of, the newest first; of a single device alone."""


class RolloutStatus(StrEnum):
    """Where a rollout stands."""

    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    COMPLETED = "completed"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"

    @property
    def final(self) -> bool:
        """Whether the rollout is over."""
        return self in (self.COMPLETED, self.ABORTED, self.SUPERSEDED)


class WaveView(View):
    """One wave: how many devices, and how many in each phase ("waiting": not told yet)."""

    number: int
    share: str
    """As asked for: `25%` or `30`."""
    open: bool
    devices: int
    counts: dict[str, int]


class RolloutDeviceView(View):
    """One device in a rollout."""

    id: str
    wave: int
    online: bool
    phase: Phase | None
    """None: not told yet, or told and silent."""
    reason: Reason | None = None
    detail: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_s: int = 0
    """How fast they come, lately."""
    waiting: bool = False
    """It fetches nothing on purpose; `detail` says why."""
    labelled_pairs: int = 0
    worse: int = 0
    better: int = 0
    recall: str = ""
    """While and after its rollout is taken back: `back`, `on its way`, `offline`, `left alone`
    (told something else since), `nothing before`, or `cannot: ` and why."""


class VerdictView(View):
    """What a gate says, or said when something was decided, with the numbers it rests on."""

    gate: str
    """accuracy, refusals, heavy-losses, crashes, cpu-time, failures: may abort. promotion: lets a
    rollout go on. silence, threshold, operator."""
    ruling: str
    """abort, promote, enlarge, hold or approved."""
    at: float
    words: str
    e: float | None = None
    """The e-value; it decides at `limit`, which is 1 / `alpha`."""
    limit: float | None = None
    alpha: float | None = None
    wave: int = 0
    devices: int = 0
    """That it rests on."""
    figures: dict[str, float] = {}


class PlanWaveView(View):
    """One wave of a rollout that was not started."""

    number: int
    share: str
    devices: int
    told: int
    """Devices that will have been told when it is open."""
    too_small: str = ""
    """Why the tests cannot decide from so many; empty: they can."""
    bytes_coming: int = 0
    """That its devices will fetch, all together."""
    bytes_sent: int = 0
    """Of these, each transfer once: what the broker gets where devices fetch together."""
    refused: int = 0
    """Devices whose preflight will refuse."""


class PlanDeviceView(View):
    """What the release would cost one device, from what it last reported."""

    id: str
    wave: int
    online: bool
    how: Literal["held", "delta", "whole", "refused", "unknown"]
    """unknown: it never said what it can run, the bytes are those of the first variant."""
    variant: str = ""
    bytes_coming: int = 0
    bytes_whole: int = 0
    """What the same files would take without deltas."""
    reason: Reason | None = None
    """Why its preflight will refuse."""
    detail: str = ""


class RolloutPlanView(View):
    """What a rollout would be."""

    release: str
    to: str
    devices: int
    waves: tuple[PlanWaveView, ...]
    alphas: dict[str, float]
    """Gate -> its part of the chance of a false abort; empty: judged by a share of refusals."""
    refusal: str = ""
    """Why it would not be started as it is; empty: it would."""
    next_step: str = ""
    bytes_coming: int = 0
    refused: int = 0
    forecasts: tuple[PlanDeviceView, ...] = ()
    """Every device, by wave."""


class RolloutView(View):
    """A rollout as far as it is. `devices` comes with the single one alone."""

    id: str
    release: str
    """name@version."""
    digest: str
    to: str
    status: RolloutStatus
    because: str
    """The latest decision in words."""
    started_at: float
    ended_at: float | None
    probation: Probation
    bytes_per_s: int = 0
    windows: Windows = ()
    spread_s: int | None = None
    gates: tuple[VerdictView, ...] = ()
    """How every gate stands now; with the single one alone."""
    verdicts: tuple[VerdictView, ...] = ()
    """What was decided so far, the oldest first; with the single one alone."""
    waves: tuple[WaveView, ...]
    devices: tuple[RolloutDeviceView, ...] = ()


class MannersRule(View):
    """How devices of one kind fetch, in place of what a rollout says for all."""

    to: str
    """As in RolloutRequest; of several rules that match a device the first one counts."""
    bytes_per_s: BytesPerSecond = 0
    """0: what the rollout says."""
    windows: Windows = ()
    """None: what the rollout says."""


class RolloutRequest(View):
    """What `POST /v1/rollouts` takes."""

    release: str
    """name@version."""
    to: str = "all"
    """`all`, or terms joined by `and`: `site=berlin and arch=aarch64`, `device=cam-1`."""
    waves: tuple[str, ...] = ("100%",)
    """Cumulative shares of the target: counts or percentages, ascending, the last 100%."""
    probation: Probation = Probation()
    bytes_per_s: BytesPerSecond = 0
    """What each device may ask for in a second; 0: as fast as it can."""
    windows: Windows = ()
    """Times of the day on each device's own clock when it may fetch; none: at any time."""
    rules: Annotated[tuple[MannersRule, ...], Field(max_length=MAX_RULES)] = ()
    """Other caps and windows for devices with certain labels."""
    spread_s: Spread | None = None
    """The devices of a wave begin at moments of their own within this long; None: a second for
    every 200 of them."""
    max_refused_percent: int | None = None
    """Abort when more than this share of the devices told, and at least one, took it badly; None:
    20 for fewer devices than a test can decide from, else no such limit."""
    judged_by: Literal["tests", "threshold"] = "tests"
    """threshold: `max_refused_percent` alone."""
    approve_small_waves: bool = False
    """Start although there are waves too small to decide, and devices to make them larger."""


class CommandView(View):
    """A one-shot command and its answer."""

    id: str
    device: str
    verb: str
    outcome: str
    """waiting, done, refused, failed or expired."""
    detail: str = ""


class EventView(View):
    """Something worth telling: when, what kind, about which device or rollout, in words."""

    id: int = 0
    """Grows from one to the next; 0: not stored yet."""
    at: float
    kind: str
    subject: str
    text: str
