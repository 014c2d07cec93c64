"""A device and its surroundings in memory, on a virtual clock.

It carries out the actions of the real `agent.core.step` faithfully: the network may lose, repeat
and reorder; the disk keeps only what an action wrote; engines behave as their release was made.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agent.control import Loaded, Tally
from agent.core import actions as do
from agent.core import events as ev
from agent.core.imports import Imported
from agent.core.reconcile import reconcile
from agent.core.state import AgentState, Instant, Journal, Settings
from agent.core.step import next_wake, step
from wire.codec import encode
from wire.ids import digest_of
from wire.manifest import File, Manifest, Requires, Task, TensorSpec, Variant
from wire.manners import Manners
from wire.telemetry import Item
from wire.transfer import ChunkFrame, FetchRequest, Offer, chunk_hash
from wire.twin import (
    Capabilities,
    Desired,
    DesiredRelease,
    Phase,
    Probation,
    Reason,
    Reported,
)

Conduct = Literal["good", "worse", "crashes at load", "fails golden", "hangs in trial"]
Source = Literal["good", "lies", "fails", "silent", "stops midway"]
CHUNK = 1024
ENGINE_BYTES = 50_000_000
CAPABLE = Capabilities(architecture="x86_64", runtimes={"onnxruntime": "1.32.0"})


@dataclass(frozen=True)
class Made:
    """A release as the controller keeps it: its files, and whatever travels, by digest."""

    manifest: Manifest
    digest: str
    bodies: dict[str, bytes]
    offers: tuple[Offer, ...]
    conduct: Conduct

    @property
    def by_index(self) -> dict[str, bytes]:
        """What travels, by the digests of its indexes."""
        return {offer.index: self.bodies[offer.transfer] for offer in self.offers}

    def as_delta_to(self, base: "Made") -> "Made":
        """Offer the artifact as a delta to that of `base` first: a stand-in that tells its base."""
        file = self.manifest.variants[0].artifact
        held = base.manifest.variants[0].artifact.digest
        travels = f"what turns {held} into {file.digest}".encode()
        offer = offer_of(travels).model_copy(
            update={
                "file": file.digest,
                "file_bytes": file.size_bytes,
                "encoding": "delta",
                "base": held,
            }
        )
        bodies = {**self.bodies, offer.transfer: travels}
        return replace(self, bodies=bodies, offers=(offer, *self.offers))


def make_release(
    version: int,
    conduct: Conduct = "good",
    model: str = "digits",
    sources: tuple[str, ...] | None = None,
    *,
    requires: Requires | None = None,
    task: Task | None = None,
    shape: tuple[int, ...] = (-1, 4),
) -> Made:
    """Make a release of two files and its manifest."""
    tensor = TensorSpec(name="x", datatype="FP32", shape=shape)
    weights = f"{model} weights {version} {conduct} ".encode() * 150
    labels = b"zero\none\n"
    manifest = Manifest(
        model=model,
        version=version,
        task=task or Task(kind="classification", scores="x"),
        inputs=(tensor,),
        outputs=(tensor,),
        labels=_file("labels.txt", labels),
        variants=(
            Variant(
                name="onnx-int8",
                format="onnx",
                artifact=_file("model.onnx", weights),
                requires=requires or Requires(),
                inputs=(tensor,),
                outputs=(tensor,),
            ),
        ),
        sources=sources,
    )
    body = encode(manifest)
    bodies = {digest_of(data): data for data in (body, weights, labels)}
    offers = tuple(offer_of(data) for data in bodies.values())
    return Made(manifest, digest_of(body), bodies, offers, conduct)


def _file(name: str, data: bytes) -> File:
    return File(name=name, digest=digest_of(data), size_bytes=len(data))


def index_of(data: bytes) -> bytes:
    return b"".join(chunk_hash(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK))


def offer_of(data: bytes) -> Offer:
    digest = digest_of(data)
    return Offer(
        file=digest,
        file_bytes=len(data),
        transfer=digest,
        transfer_bytes=len(data),
        index=digest_of(index_of(data)),
        chunk_bytes=CHUNK,
    )


@dataclass
class Partial:
    """A transfer on disk."""

    offer: Offer
    index: bytes = b""
    chunks: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Process:
    """A running engine."""

    releases: dict[str, str]
    """Model -> release digest."""
    serving: bool = False
    shadow: tuple[str, str] | None = None
    asked: int = 0


class World:
    """One device with everything around it. `local` events are sure; `network` ones are not."""

    def __init__(self, *known: Made, **settings: Any) -> None:
        """Begin with these releases at the controller, and these settings of the agent."""
        self.releases = {made.digest: made for made in known}
        self.mono, self.wall = 1000.0, 1_750_000_000.0
        self.revision = 0
        self.sent: list[Desired] = []
        self.journal = Journal()
        self.blobs: dict[str, bytes] = {}
        self.partials: dict[str, Partial] = {}
        self.imports: dict[str, Imported] = {}
        self.arrived: list[tuple[Imported, dict[str, bytes]]] = []
        """Imported, and not yet taken up."""
        self.engines: dict[int, Process] = {}
        self.local: list[ev.Event] = []
        self.network: list[ev.Event] = []
        self.reports: list[Reported] = []
        self.log: list[str] = []
        self.starts = 0
        self.connected = False
        self.free_bytes = 10**9
        self.memory_bytes = 10**9
        """Available to a further engine."""
        self.source: Source = "good"
        self.ranges: list[tuple[str, int, int]] = []
        """What sources were asked for: URL, first chunk, count."""
        self.disk_bytes: int | None = None
        """Of all artifacts together, instead of `free_bytes`."""
        self.settings: dict[str, Any] = settings
        self.fetched: list[tuple[str, str, int]] = []
        self.outbox: list[Item] = []
        self.listening: set[str] = set()
        """Indexes whose frames are subscribed to."""
        self.judged: set[str] = set()
        """Release digests that a trial and, beside a champion, a probation let through."""
        self.running = False
        self.disk_full = False
        self.deltas_fail = False
        self.tamper: Callable[[ev.Event], ev.Event] = lambda event: event
        self.boot()

    # ---- the controller's side

    def add(self, made: Made) -> Made:
        """Let the controller know a release."""
        self.releases[made.digest] = made
        return made

    def want(
        self,
        made: Made,
        rollout: str,
        purpose: Literal["rollout", "rollback"] = "rollout",
        probation: Probation | None = None,
        manners: Manners | None = None,
    ) -> Desired:
        """Publish a new desired document that names this release (and keeps other models)."""
        last = self.sent[-1].releases if self.sent else ()
        others = tuple(r for r in last if r.model != made.manifest.model)
        release = DesiredRelease(
            model=made.manifest.model,
            version=made.manifest.version,
            rollout=rollout,
            purpose=purpose,
            manifest=made.digest,
            offers=made.offers,
            probation=probation or Probation(labelled_pairs=300, deadline_s=600),
            fetch_deadline_s=300,
            manners=manners or Manners(),
        )
        return self._publish((*others, release))

    def bring(self, made: Made, order: str = "") -> None:
        """Import a bundle; `order`: the rollout on whose behalf it is to be installed."""
        release = DesiredRelease(
            model=made.manifest.model,
            version=made.manifest.version,
            rollout=order or "local-files",
            manifest=made.digest,
            offers=made.offers,
            probation=Probation(labelled_pairs=0),
        )
        files = tuple(made.bodies)
        imported = Imported(
            release.model,
            release.version,
            made.digest,
            files,
            self.wall,
            release if order else None,
        )
        self.arrived.append((imported, dict(made.bodies)))
        self.local.append(ev.BundleReady())

    def take_up(self) -> tuple[Imported, ...]:
        """Move what arrived into the slots."""
        for imported, bodies in self.arrived:
            self.blobs |= bodies
            self.imports[imported.model] = imported
        self.arrived.clear()
        return tuple(self.imports.values())

    def hold(self, held: bool) -> Desired:
        """Publish the last document again with all its fetching held, or let go."""
        last = self.sent[-1].releases if self.sent else ()
        manners = [each.manners.model_copy(update={"held": held}) for each in last]
        return self._publish(
            tuple(
                release.model_copy(update={"manners": each})
                for release, each in zip(last, manners, strict=True)
            )
        )

    def want_nothing(self) -> Desired:
        """Publish a desired document that names no model."""
        return self._publish(())

    def _publish(self, releases: tuple[DesiredRelease, ...]) -> Desired:
        self.revision += 1
        desired = Desired(device="cam-1", revision=self.revision, releases=releases)
        self.sent.append(desired)
        self.network.append(ev.DesiredCame(desired))
        return desired

    # ---- the device's life

    def boot(self) -> None:
        """Start the agent from what is on disk."""
        self.starts += 1
        named: dict[str, Any] = {
            "device": "cam-1",
            "boot": f"boot-{self.starts}",
            "version": "test",
            "started": int(self.wall),
            "window_s": 60,
            "health_s": 60,
        }
        settings = Settings(**(named | self.settings))
        self.state = AgentState(settings)
        self.running = True
        imports = self.take_up()
        blobs = frozenset(self.blobs)
        self.give(ev.Booted(self.journal, CAPABLE, blobs, imports=imports))

    def crash(self) -> None:
        """Lose the agent as by kill -9: engines follow it, the disk stays."""
        self.running = False
        self.engines.clear()
        self.listening.clear()
        self.local.clear()
        self.network = [e for e in self.network if isinstance(e, ev.DesiredCame)]
        self.connected = False
        self.boot()

    def connect(self) -> None:
        """Reach the broker; the retained desired document comes again."""
        if not self.connected:
            self.connected = True
            self.give(ev.Connected())
            if self.sent:
                self.network.append(ev.DesiredCame(self.sent[-1]))

    def disconnect(self) -> None:
        """Lose the broker and whatever was on its way."""
        if self.connected:
            self.connected = False
            self.network.clear()
            self.give(ev.Disconnected())

    def kill_engine(self, number: int, code: int = -11) -> None:
        """Lose an engine process."""
        if self.engines.pop(number, None) is not None:
            self.local.append(ev.EngineExited(number, code))

    def advance(self, seconds: float) -> None:
        """Let time pass and tell the agent."""
        self.mono += seconds
        self.wall += seconds
        self.give(ev.Ticked())

    def now(self) -> Instant:
        """Return this moment; the device stands where the world's clock is kept."""
        return Instant(self.mono, self.wall, self.wall % 86_400)

    def give(self, event: ev.Event) -> list[do.Action]:
        """Hand one event to the agent and carry out what it says."""
        now = self.now()
        self.state, actions = step(self.state, event, now)
        for action in actions:
            self._carry_out(action)
        assert reconcile(self.state.journal) == [], "a step must leave nothing to reconcile"
        return actions

    def settle(self, seconds: float = 4000) -> None:
        """Deliver everything in order, and let time pass, until nothing is going on."""
        self.connect()
        end = self.mono + seconds
        for _ in range(20_000):
            if not self.local and not self.network and not (self.mono < end and self.busy()):
                return
            self.go_on(1)
        raise AssertionError(f"did not settle: {self.state.journal.deployments}")

    def go_on(self, steps: int) -> None:
        """Deliver what is on its way, or else sleep until the agent wants to wake."""
        for _ in range(steps):
            if self.local:
                self.give(self.local.pop(0))
            elif self.network:
                event = self.network.pop(0)
                if not isinstance(event, ev.FramesCame) or event.index in self.listening:
                    self.give(self.tamper(event))
            else:
                wake = next_wake(self.state, self.now())
                self.advance(min(max(wake - self.mono, 0.01), 30.0))

    def busy(self) -> bool:
        """Whether something is still to end."""
        pending = any(not d.phase.final for d in self.state.journal.deployments.values())
        roles = {g.role for g in self.state.generations.values()}
        lacking = bool(self.state.journal.champions) and "serving" not in roles
        return pending or lacking or bool(roles - {"serving"})

    # ---- carrying out

    def _carry_out(self, action: do.Action) -> None:
        match action:
            case do.Say(text):
                self.log.append(text)
            case do.SaveJournal(journal):
                self.journal = journal
            case do.PublishReported(reported):
                self.reports.append(reported)
            case do.PublishFetch(request):
                self._answer_fetch(request)
            case do.Listen(index):
                self.listening.add(index)
            case do.Unlisten(index):
                self.listening.discard(index)
            case do.Enqueue(item):
                self.outbox.append(item)
            case do.MeasureSpace():
                self.local.append(self._measure())
            case do.MeasureMemory():
                sizes = {digest: len(body) for digest, body in self.blobs.items()}
                engines = dict.fromkeys(self.engines, ENGINE_BYTES)
                self.local.insert(0, ev.MemoryMeasured(self.memory_bytes, engines, sizes))
            case do.OpenTransfer(offer):
                self._open(offer)
            case do.FetchRange(url, offer, first, count):
                self._answer_range(url, offer, first, count)
            case do.CancelRange():
                self.network = [e for e in self.network if not isinstance(e, ev.SourceFrame)]
            case do.WriteIndex(transfer, index):
                self.partials[transfer].index = index
            case do.WriteChunk(transfer, offset, payload):
                if self.disk_full:
                    failed = ev.TransferFailed(transfer, Reason.NO_SPACE, "disk full")
                    self.local.append(failed)
                else:
                    self.partials[transfer].chunks[offset // CHUNK] = payload
            case do.FinishTransfer(offer):
                self._finish(offer)
            case do.ReadManifest(digest):
                manifest = Manifest.model_validate_json(self.blobs[digest])
                self.local.append(ev.ManifestRead(digest, manifest))
            case do.CollectGarbage(files, transfers):
                self.blobs = {d: b for d, b in self.blobs.items() if d in files}
                self.partials = {t: p for t, p in self.partials.items() if t in transfers}
            case do.TakeImports():
                imports = self.take_up()
                files = {file for each in imports for file in each.files}
                self.give(ev.ImportsTaken(imports, frozenset(files & set(self.blobs))))
            case do.KeepOrder(model):
                self.imports[model] = replace(self.imports[model], order=None)
            case do.ForgetImport(model):
                del self.imports[model]
            case do.StartEngine():
                self._start_engine(action)
            case do.ServeEngine(number):
                if number in self.engines:
                    self.engines[number].serving = True
            case do.StartShadow(model, champion, _, release):
                if champion in self.engines:
                    self.engines[champion].shadow = (model, release)
            case do.StopShadow(_, champion):
                if champion in self.engines:
                    self.engines[champion].shadow = None
            case do.AskScores(number, _):
                self._score(number)
            case do.DrainEngine(number) | do.KillEngine(number):
                if self.engines.pop(number, None) is not None:
                    self.local.append(ev.EngineExited(number, 0))
            case _:
                pass

    def _measure(self) -> ev.SpaceMeasured:
        sizes = {digest: len(body) for digest, body in self.blobs.items()}
        if self.disk_bytes is None:
            return ev.SpaceMeasured(self.free_bytes, sizes)
        return ev.SpaceMeasured(self.disk_bytes - sum(sizes.values()), sizes)

    def _open(self, offer: Offer) -> None:
        partial = self.partials.setdefault(offer.transfer, Partial(offer))
        present = frozenset(partial.chunks) if partial.index else frozenset()
        self.local.append(ev.TransferOpened(offer.transfer, partial.index, present))

    def _finish(self, offer: Offer) -> None:
        partial = self.partials.pop(offer.transfer)
        if self.disk_full:
            return  # the failed write was answered already
        data = b"".join(partial.chunks[n] for n in sorted(partial.chunks))
        assert digest_of(data) == offer.transfer
        if offer.encoding == "delta":
            if self.deltas_fail or offer.base not in self.blobs:
                self.local.append(ev.BlobRefused(offer.file, Reason.BAD_ARTIFACT, "no such sum"))
                return
            data = next(
                m.bodies[offer.file] for m in self.releases.values() if offer.file in m.bodies
            )
        assert digest_of(data) == offer.file
        self.blobs[offer.file] = data
        self.local.append(ev.BlobStored(offer.file))

    def _answer_fetch(self, request: FetchRequest) -> None:
        if not self.connected:
            return
        for made in self.releases.values():
            data = made.by_index.get(request.index)
            if data is not None:
                break
        else:
            return
        source = data if request.part == "data" else index_of(data)
        for number in request.numbers():
            self.fetched.append((request.index, request.part, number))
            payload = source[number * CHUNK : (number + 1) * CHUNK]
            frame = ChunkFrame(request.part, number, payload)
            self.network.append(ev.FramesCame(request.index, (frame,)))

    def _answer_range(self, url: str, offer: Offer, first: int, count: int) -> None:
        self.ranges.append((url, first, count))
        data = next(b for r in self.releases.values() for d, b in r.bodies.items()
                    if d == offer.transfer)  # fmt: skip
        sent = {"good": count, "lies": count, "stops midway": count // 2}.get(self.source, 0)
        for number in range(first, first + sent):
            payload = data[number * CHUNK : (number + 1) * CHUNK]
            if self.source == "lies":
                payload = bytes(len(payload))
            frame = ChunkFrame("data", number, payload)
            self.network.append(ev.SourceFrame(url, offer.index, frame))
        if self.source == "fails" or (self.source == "stops midway" and sent < count):
            self.network.append(ev.SourceFailed(url, "connection refused"))

    def _start_engine(self, action: do.StartEngine) -> None:
        for spec in action.models:
            for digest in spec.files:
                assert digest in self.blobs, f"engine started without {digest[:15]}"
        if action.golden:
            journalled = [d for d in self.journal.deployments.values() if d.phase is Phase.TRIAL]
            assert journalled, "an attempt must be on disk before its engine starts"
            assert journalled[0].attempts >= 1
        process = Process({spec.model: spec.manifest for spec in action.models})
        self.engines[action.generation] = process
        conducts = {spec.model: self.releases[spec.manifest].conduct for spec in action.models}
        number = action.generation
        if "crashes at load" in conducts.values():
            self.kill_engine(number)
        elif action.golden and "fails golden" in conducts.values():
            model = next(m for m, c in conducts.items() if c == "fails golden")
            self.local.append(
                ev.EngineFailed(number, model, Reason.GOLDEN_MISMATCH, "3 of 20 differ")
            )
            self.kill_engine(number, 1)
        elif action.golden and "hangs in trial" in conducts.values():
            model = next(m for m, c in conducts.items() if c == "hangs in trial")
            self.local.append(ev.EngineFailed(number, model, Reason.HUNG, "no answer in 60 s"))
            self.kill_engine(number, -9)
        else:
            loaded = tuple(Loaded(m, "onnxruntime 1.32.0", 1.0, 0.1) for m in process.releases)
            self.local.append(ev.EngineReady(number, loaded))

    def _score(self, number: int) -> None:
        process = self.engines.get(number)
        if process is None:
            return
        tallies: tuple[Tally, ...] = ()
        if process.shadow is not None:
            process.asked += 1
            model, release = process.shadow
            n = 150 * process.asked
            bad = self.releases[release].conduct == "worse"
            tally = Tally(
                model,
                release,
                pairs=n,
                disagreements=n // 10,
                labelled=n,
                worse=n // 10 if bad else n // 50,
                better=0 if bad else n // 50,
            )
            if not bad and n >= 300:
                self.judged.add(release)
            tallies = (tally,)
        self.local.append(ev.ScoresCame(number, (), tallies))


def phase_of(world: World, model: str = "digits") -> tuple[Phase, Reason | None]:
    """Return the phase and reason of a model's latest deployment."""
    deployment = world.state.journal.deployments[model]
    return deployment.phase, deployment.reason


def champion_of(world: World, model: str = "digits") -> int | None:
    """Return the version that serves on disk and in an engine that is up."""
    champion = world.journal.champions.get(model)
    if champion is None:
        return None
    serving = [p for p in world.engines.values() if p.serving]
    assert serving and serving[-1].releases[model] == champion.manifest
    return champion.version
