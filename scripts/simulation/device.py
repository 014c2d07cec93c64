"""One simulated device: the real `agent.core.step`, and a shell that takes its time by chance."""

from collections import deque
from typing import TYPE_CHECKING, Any

from agent.control import Loaded, Tally
from agent.core import actions as do
from agent.core import events as ev
from agent.core.state import AgentState, Instant, Journal, Settings
from agent.core.step import next_wake, step
from scripts.simulation.parts import ARTIFACT_CHUNKS, MODEL, T0, frame
from wire.twin import Capabilities, Desired

if TYPE_CHECKING:
    from scripts.simulation.world import World

CAPABLE = Capabilities(architecture="aarch64", runtimes={"onnxruntime": "1.32.0"})
FREE_BYTES = 10**9
LOAD_S = (2.0, 12.0)
SELDOM_S = 7 * 86_400.0
"""Telemetry decides nothing about a rollout here, so it is made seldom."""


class Device:
    """A device with its disk, engines and line. Slots: there may be a hundred thousand."""

    __slots__ = (
        "alive",
        "asked_at",
        "back_at",
        "better",
        "blobs",
        "connected",
        "crashes",
        "desired",
        "differ",
        "disagree",
        "engines",
        "id",
        "journal",
        "labelled",
        "labels_per_s",
        "line_s",
        "listening",
        "local",
        "lost_share",
        "pairs",
        "partials",
        "shadow",
        "skew_s",
        "state",
        "took_at",
        "wake",
        "world",
        "worse",
    )  # fmt: skip

    def __init__(self, world: "World", id: str, desired: Desired, journal: Journal) -> None:
        """Draw what kind of device it is; `boot` starts it."""
        plan, chance = world.plan, world.chance
        self.world, self.id = world, id
        self.desired, self.journal = desired, journal
        self.blobs: frozenset[str] = world.old.files
        self.partials: dict[str, tuple[bytes, set[int]]] = {}
        self.engines: dict[int, str] = {}
        self.listening: set[str] = set()
        self.local: deque[ev.Event] = deque()
        self.alive, self.connected = True, False
        self.wake = 0
        self.skew_s = chance.uniform(-plan.skew_s, plan.skew_s)
        line = plan.line_bytes_s / (20 if chance.random() < plan.slow else 1)
        self.line_s = plan.artifact_bytes / line
        """For the whole artifact."""
        self.labels_per_s = 0.0 if chance.random() < plan.unlabelled else plan.labels_per_s
        self.crashes = chance.random() < plan.crash
        hit = chance.random() < plan.hit
        points = plan.points / 100 if hit else 0.0
        # A device cannot lose more than it disagrees on.
        self.disagree = min(1.0, plan.disagree + (points if points > plan.disagree / 2 else 0.0))
        lean = min((1 + points / self.disagree) / 2, 0.99)
        self.lost_share = chance.betavariate(4 * lean, 4 * (1 - lean))
        """Of disagreements, those that the new release loses here."""
        self.shadow: tuple[str, str] | None = None
        self.asked_at = 0.0
        self.pairs = self.differ = self.labelled = self.worse = self.better = 0
        self.took_at: float | None = None
        self.back_at: float | None = None
        self.state: AgentState

    def boot(self) -> None:
        """Start the agent from what is on disk."""
        settings = Settings(
            device=self.id, boot="b", version="simulated", started=int(T0), window_s=SELDOM_S,
            health_s=SELDOM_S,
        )  # fmt: skip
        self.state = AgentState(settings)
        self.give(ev.Booted(self.journal, CAPABLE, self.blobs))

    def connect(self) -> None:
        """Reach the broker; the retained order comes."""
        if self.alive and not self.connected:
            self.connected = True
            self.give(ev.Connected())
            if self.desired.revision:
                self.world.down(self)

    def disconnect(self) -> None:
        """Lose the line."""
        if self.connected:
            self.connected = False
            self.give(ev.Disconnected())

    def now(self) -> Instant:
        """Return this moment by its own clocks."""
        wall = T0 + self.world.now + self.skew_s
        return Instant(1000.0 + self.world.now, wall, wall % 86_400)

    def give(self, event: ev.Event) -> None:
        """Hand one event to the agent, carry out what it says, and see when it wants to wake."""
        self.local.append(event)
        now = self.now()
        while self.local:
            self.state, actions = step(self.state, self.local.popleft(), now)
            for action in actions:
                self._carry_out(action)
        wake_s = max(next_wake(self.state, now) - now.mono, self.world.plan.grain_s)
        self.wake += 1
        if wake_s < SELDOM_S / 2:
            self.world.later(wake_s, self._tick, self.wake)

    def _tick(self, wake: int) -> None:
        if wake == self.wake and self.alive:
            self.give(ev.Ticked())

    def _answer(self, event: ev.Event) -> None:
        if self.alive:
            self.give(event)

    def _carry_out(self, action: do.Action) -> None:
        match action:
            case do.SaveJournal(journal):
                self._saved(journal)
            case do.PublishReported(reported):
                if self.connected:
                    self.world.up(self, reported)
            case do.PublishOnline():
                if self.connected:
                    self.world.online(self)
            case do.PublishFetch(request):
                if self.connected:
                    self._fetch(request)
            case do.Listen(index):
                self.listening.add(index)
            case do.Unlisten(index):
                self.listening.discard(index)
            case do.SendOutbox():
                self.world.later(self.world.delay(), self._answer, ev.AckCame(self.state.sequence))
            case do.MeasureSpace():
                self.local.append(ev.SpaceMeasured(FREE_BYTES, {}, FREE_BYTES))
            case do.MeasureMemory():
                self.local.appendleft(ev.MemoryMeasured(FREE_BYTES, {}, {}))
            case do.OpenTransfer(offer):
                index, present = self.partials.setdefault(offer.transfer, (b"", set()))
                held = frozenset(present) if index else frozenset()
                self.local.append(ev.TransferOpened(offer.transfer, index, held))
            case do.WriteIndex(transfer, index):
                self.partials[transfer] = (index, set())
            case do.WriteChunk(transfer, offset, _):
                self.partials[transfer][1].add(offset)
            case do.FinishTransfer(offer):
                self.partials.pop(offer.transfer, None)
                self.blobs |= {offer.file}
                self.local.append(ev.BlobStored(offer.file))
            case do.ReadManifest(digest):
                self.local.append(ev.ManifestRead(digest, self.world.made[digest].manifest))
            case do.CollectGarbage(files, transfers):
                self.blobs &= files
                self.partials = {t: p for t, p in self.partials.items() if t in transfers}
            case do.TakeImports():
                self.local.append(ev.ImportsTaken((), frozenset()))
            case do.StartEngine():
                self._start_engine(action)
            case do.StartShadow(model, _, _, release):
                self.shadow, self.asked_at = (model, release), self.world.now
                self.pairs = self.differ = self.labelled = self.worse = self.better = 0
            case do.StopShadow():
                self.shadow = None
            case do.AskScores(number, _):
                self._score(number)
            case do.DrainEngine(number) | do.KillEngine(number):
                if self.engines.pop(number, None) is not None:
                    self.local.append(ev.EngineExited(number, 0))
            case _:
                pass

    def _saved(self, journal: Journal) -> None:
        self.journal = journal
        champion = journal.champions.get(MODEL)
        new = champion is not None and champion.manifest == self.world.new.digest
        if new and self.took_at is None:
            self.took_at = self.world.now
        elif not new and self.took_at is not None and self.back_at is None:
            self.back_at = self.world.now

    def _fetch(self, request: Any) -> None:
        made = self.world.by_index[request.index]
        lost = self.world.plan.loss
        numbers = [n for n in request.numbers() if self.world.chance.random() >= lost]
        if not numbers:
            return
        frames = tuple(frame(made, request.index, request.part, n) for n in numbers)
        # The manifest is small; the artifact takes the time that its real size would.
        large = request.part == "data" and request.index == made.offers[-1].index
        took = self.line_s * len(numbers) / ARTIFACT_CHUNKS if large else 0.0
        self.world.later(self.world.delay() + took, self._frames, request.index, frames)

    def _frames(self, index: str, frames: tuple[Any, ...]) -> None:
        if self.alive and self.connected and index in self.listening:
            self.give(ev.FramesCame(index, frames))

    def _start_engine(self, action: do.StartEngine) -> None:
        number = action.generation
        manifests = {spec.model: spec.manifest for spec in action.models}
        self.engines[number] = manifests[MODEL]
        took = self.world.chance.uniform(*LOAD_S)
        if self.crashes and manifests[MODEL] == self.world.new.digest:
            self.world.later(took, self._crash, number)
            return
        loaded = tuple(Loaded(model, "onnxruntime 1.32.0", 1.0, 0.1) for model in manifests)
        self.world.later(took, self._ready, number, loaded)

    def _crash(self, number: int) -> None:
        if self.engines.pop(number, None) is not None:
            self._answer(ev.EngineExited(number, -11))

    def _ready(self, number: int, loaded: tuple[Loaded, ...]) -> None:
        if number in self.engines:
            self._answer(ev.EngineReady(number, loaded))

    def _score(self, number: int) -> None:
        tallies: tuple[Tally, ...] = ()
        if self.shadow is not None:
            model, release = self.shadow
            more = int((self.world.now - self.asked_at) * self.world.plan.labels_per_s)
            if more > 0:
                self.asked_at += more / self.world.plan.labels_per_s
                self.pairs += more
                differ = self.world.binomial(more, self.disagree)
                self.differ += differ
                if self.labels_per_s:
                    self.labelled += more
                    worse = self.world.binomial(differ, self.lost_share)
                    self.worse += worse
                    self.better += differ - worse
            tallies = (
                Tally(
                    model, release, pairs=self.pairs, disagreements=self.differ,
                    labelled=self.labelled, worse=self.worse, better=self.better,
                ),
            )  # fmt: skip
        self.local.append(ev.ScoresCame(number, (), tallies))

    @property
    def serves(self) -> str:
        """The digest of the release that it would serve."""
        champion = self.journal.champions.get(MODEL)
        return champion.manifest if champion is not None else ""
