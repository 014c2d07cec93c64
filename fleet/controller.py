"""The only loop of the fleet's side: what is heard goes to the deciders, what they decide goes out.

    link, API --> queue --> loop: census, ingest, rollout.step, sender, courier --> store --> link

One thread owns all state. API threads put a call on the queue and wait for its answer. What a
decision changes is stored as a whole before any of it is published, and a restart builds
everything anew from the store; nothing is retried faster than its deadline says.
"""

import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fleet.core import present, report_asked
from fleet.core.alert_port import AlertsPort
from fleet.core.books import MAX_FILES, Books, Release
from fleet.core.cohort import select
from fleet.core.courier import Courier
from fleet.core.enrolment import agent_toml
from fleet.core.errors import FleetError
from fleet.core.export import Asked, export, head_of
from fleet.core.export_views import ExportLine
from fleet.core.keeping import MEBIBYTE, SAMPLES_DAYS, SAMPLES_MB, TELEMETRY_DAYS
from fleet.core.metrics import RECENT_S, IngestCounts, Snapshot
from fleet.core.port import Bundle
from fleet.core.report import Frame, class_names, gather, report
from fleet.core.report_views import ReportView
from fleet.core.rollout import (
    Assign,
    Rollout,
    abort,
    approve,
    condemned,
    news,
    notable,
    pause,
    promote,
    resume,
    roll_back,
    step,
    supersede,
)
from fleet.core.sample_views import (
    MAX_ASKED,
    CaptureRequest,
    CaptureRequestView,
    Deleted,
    SampleView,
)
from fleet.core.scores import Totals
from fleet.core.sender import Chunk, Sender
from fleet.core.suppression import MIN_DEVICES
from fleet.core.target import parse_target
from fleet.core.views import (
    CommandView,
    DeviceEventView,
    DeviceView,
    EventView,
    HealthView,
    Refusal,
    ReleaseView,
    RolloutPlanView,
    RolloutRequest,
    RolloutView,
)
from fleet.ingest import Ingest
from fleet.shell.blobs import CHUNK_BYTES, Blobs, Writer
from fleet.shell.key import read_or_make_key
from fleet.shell.link import Drained, Heard, Link, LinkDown, LinkUp
from fleet.shell.metrics import Metrics, Sources
from fleet.shell.notices import Notices
from fleet.shell.samples import Samples
from fleet.shell.store import Change, DesiredRow, Store
from fleet.shell.telemetry import DAY_S, Retention, Telemetry
from fleet.upkeep import Levers, Upkeep, quarantined
from wire import VERSION
from wire.bundle import BundleSeal, bundle_bytes, write_bundle
from wire.codec import encode
from wire.command import CAPTURE, VERBS, CaptureOrder, Command, CommandResult
from wire.ids import ReleaseRef
from wire.manifest import File, Manifest
from wire.sample import CaptureReport, Sample
from wire.seal import Sealer
from wire.telemetry import Ack, Batch
from wire.topics import Kind, Topic
from wire.transfer import ChunkFrame, FetchRequest, Offer
from wire.twin import DeploymentReport, Reported, Status

log = logging.getLogger("fleet.controller")

T = TypeVar("T")

COMMIT_S = 0.5
MAX_TAKEN = 500
"""What is taken from the queue before anything else is done."""

MAX_EVENTS = 500
"""That wait to be stored."""

STEP_S = 0.1
"""News of devices is gathered this long before the rollouts are looked at."""

STEP_REST = 15
"""And so many times as long as the last look took: a large fleet costs one part in sixteen."""

TOLD_AT_ONCE = 512
"""Orders that are handed to the link together; what fetches wait for is not behind more."""

TICK_S = 1.0
"""How often running rollouts are looked at without news, for the deadlines."""

IDLE_S = 30.0
PRUNE_S = 600.0
RETRY_S = 2.0
"""How long the loop rests after an error of its own, such as a full disk."""

RESUBSCRIBE_S = ((1.0, 2.0), (5.0, 15.0))
DELTA_WAIT_S = 10.0
"""How long a rollout waits for deltas before it begins without them."""

EVENTS_SHOWN = 5
REISSUE_S = 10.0
COMMAND_S = 60
CALL_S = 60.0
MAX_QUEUE = 20_000
MAX_DEVICES = 100_000
MAX_ROLLOUTS = 500


@dataclass(frozen=True, slots=True)
class _Call:
    """Something an API thread wants done on the loop."""

    run: Callable[[], Any]
    answer: "Future[Any]"


@dataclass(frozen=True, slots=True)
class _Stop:
    """End the loop."""


class Controller:
    """Keeps releases, devices and rollouts, and speaks to the devices. A ControllerPort."""

    def __init__(  # noqa: PLR0917 - two logins
        self,
        data_dir: Path,
        broker_url: str,
        username: str,
        password: str,
        device_username: str,
        device_password: str,
        chunk_bytes: int = CHUNK_BYTES,
        shared: bool = True,
        samples_bytes: int = SAMPLES_MB * MEBIBYTE,
        samples_days: int = SAMPLES_DAYS,
        alerts: Path | None = None,
        telemetry_days: int = TELEMETRY_DAYS,
    ) -> None:
        """Open everything in `data_dir`; nothing is sent before `start`.

        Unless `shared`, devices are told to ask for frames on topics of their own. `alerts` is
        the policy for alerts, where it is not in `data_dir`.

        Raises:
            FleetError: the store, the key or the policy cannot be used.
            Refusal: 422, the broker's URL makes no sense.
        """
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._broker_url = broker_url
        self._device_login = (device_username, device_password)
        self._sealer = Sealer(read_or_make_key(data_dir / "controller.key"))
        self._queue: queue.Queue[Any] = queue.Queue(MAX_QUEUE)
        self._link = Link(broker_url, username, password, self._queue)
        self._blobs = Blobs(data_dir, chunk_bytes)
        self._store = Store(data_dir / "fleet.db")
        self._telemetry = Telemetry(
            data_dir / "telemetry.db", self._labels_of, Retention(telemetry_days * DAY_S)
        )
        """Sums by time, which reports are made of."""
        self._samples = Samples(data_dir / "samples", samples_bytes, samples_days)
        self._metrics = Metrics(
            Sources(
                snapshot=lambda: self._ask(self._snapshot),
                totals=self._telemetry.fleet_totals,
                report=self._day_before,
                device_totals=self._telemetry.totals,
            )
        )
        self._started_at = time.time()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)
        self._ended = threading.Event()

        self._books = Books(shared)
        self._census = self._books.census
        self._sender = Sender()
        self._courier = Courier()
        self._documents: dict[str, bytes] = {}
        """Device -> its latest sealed Desired."""
        self._offers: dict[str, Offer] = {}
        """By index digest, as devices ask for them."""
        self._chunks_published = 0
        self._chunk_bytes_published = 0
        self._sender_cpu_s = 0.0
        self._ingest = Ingest(self._telemetry, self._books.counts)
        self._reissued: dict[str, float] = {}

        self._events: list[EventView] = []
        self._unsaved: set[str] = set()
        self._news = True
        self._connected = False
        self._commit_at: float | None = None
        self._step_at = 0.0
        self._rested_at = 0.0
        """When rollouts may be looked at again."""
        self._rest_until = 0.0
        self._subscribe_at: list[float] = []
        """When to ask for the retained state once more, the earliest first."""
        self._prune_at = 0.0
        self._restore()
        levers = Levers(
            ask=self._ask,
            publish=self._link.publish,
            start_rollout=self._start_rollout,
            turn=self._turn_to,
            send_command=self._send_command,
        )
        self._upkeep = Upkeep(
            self._books, self._store, self._telemetry, levers, Notices, data_dir, alerts
        )

    @property
    def upkeep(self) -> AlertsPort:
        """Alerts, and what they do."""
        return self._upkeep.port

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that devices verify this controller's orders with."""
        return self._sealer.public

    def begin(self) -> None:
        """Start the loop: it answers its API, and devices neither hear nor are heard yet."""
        self._thread.start()

    def start(self) -> None:
        """Start the loop, unless it began, and the connection to the broker."""
        if not self._thread.is_alive():
            self.begin()
        self._link.start()
        self._upkeep.start()

    def stop(self) -> None:
        """Commit what is in hand and end; the store is closed. Harmless when repeated."""
        if self._ended.is_set():
            return
        self._upkeep.stop()
        self._link.stop()
        self._ended.set()
        if self._thread.is_alive():
            self._queue.put(_Stop())
            self._thread.join(30)
        for event in _rest_of(self._queue):
            if isinstance(event, _Call):
                event.answer.set_exception(_not_running())
        self._blobs.close()
        self._telemetry.close()
        self._store.close()

    # ---- what the API asks, from any thread

    def health(self) -> HealthView:
        """Return whether the controller works."""
        return self._ask(self._health)

    def has_blob(self, digest: str) -> bool:
        """Return whether a file with this digest is kept."""
        return self._blobs.has(digest)

    def open_blob(self, digest: str) -> Writer:
        """Start to take in a file."""
        return self._blobs.open(digest)

    def add_release(self, manifest: Manifest) -> tuple[ReleaseView, bool]:
        """Keep a release; False with the same release when it was there already."""
        files = {file.digest: file for file in manifest.all_files()}
        if len(files) > MAX_FILES:
            raise Refusal(
                422, f"{manifest.ref}: expected at most {MAX_FILES} files, got {len(files)}"
            )
        self._ask(lambda: self._books.same_release(manifest))
        for file in files.values():
            self._check_file(manifest, file)
        self._blobs.keep(manifest.digest, encode(manifest))
        # Compressing takes a while: here, on the caller's thread, the loop does not wait for it.
        offers = tuple(self._blobs.offers(each) for each in (manifest.digest, *files))
        return self._ask(lambda: self._add_release(manifest, offers))

    def releases(self, model: str | None) -> list[ReleaseView]:
        """Return all releases (of one model), newest version first."""
        return self._ask(lambda: self._books.release_views(model))

    def release(self, model: str, version: int) -> ReleaseView:
        """Return one release with its manifest."""
        return self._ask(lambda: self._books.release_view(model, version))

    def bundle(self, model: str, version: int, device: str | None, install: bool) -> Bundle:
        """Return a release as a file for devices (one `device`) that fetch nothing."""
        seal = self._ask(lambda: self._seal_bundle(model, version, device, install))
        statement, offers = self._sealer.seal(seal), seal.release.offers
        members = ((offer, self._blobs.read_all(offer)) for offer in offers)
        return Bundle(bundle_bytes(statement, offers), write_bundle(statement, members))

    def next_version(self, model: str) -> int:
        """Return the version after the highest one of `model`; 1 when it is new."""
        return self._ask(lambda: self._books.next_version(model))

    def model_report(  # noqa: PLR0917 - as they are asked for
        self, model: str, version: int | None, by: str | None, since: str, until: str,
        min_devices: int = MIN_DEVICES,
    ) -> ReportView:  # fmt: skip
        """Return what is known of a release, or of all of a model, between two times."""
        known, labels = self._ask(lambda: self._books.reported_on(model, version))
        now, hours_from = int(time.time()), self._telemetry.hours_from()
        asked = report_asked.frame(
            model, version, by, since, until, now, labels, min_devices, hours_from
        )
        # Here, on the caller's thread: the loop does not wait for it.
        names = {manifest.version: self._class_names(manifest) for manifest, _ in known}
        return report(asked, gather(asked, self._telemetry, known, names))

    def telemetry_export(self, asked: Asked) -> Iterator[ExportLine]:
        """Return telemetry as rows, made on the caller's thread while they are read."""
        known, labels = self._ask(lambda: self._books.reported_on(asked.model, asked.version))
        head = head_of(asked, int(time.time()), labels, self._telemetry.hours_from())
        return export(head, self._telemetry, known)

    def _class_names(self, manifest: Manifest) -> tuple[str, ...]:
        if manifest.labels is None:
            return ()
        return class_names(manifest, self._blobs.path(manifest.labels.digest).read_bytes())

    def metrics(self, accept: str, device: str | None) -> tuple[bytes, str]:
        """Return the fleet's metrics, or one device's, as text and its content type."""
        page = self._metrics.page(accept, device)
        return page.body, page.content_type

    def devices(self) -> list[DeviceView]:
        """Return every device ever heard of, by id."""
        scores: dict[str, list[Totals]] = {}
        for totals in self._telemetry.totals():
            scores.setdefault(totals.device, []).append(totals)
        return self._ask(
            lambda: [
                self._device_view(id, scores.get(id, ()))
                for id in sorted(device.id for device in self._census)
            ]
        )

    def device(self, id: str) -> DeviceView:
        """Return one device."""
        scores, events = self._telemetry.totals(id), self._telemetry.events(id, limit=EVENTS_SHOWN)
        view = self._ask(lambda: self._device_view(id, scores))
        told = [DeviceEventView(at=e.at, kind=e.event.kind, text=e.event.text) for e in events]
        alerts = self._upkeep.alerts.about(id)
        return view.model_copy(update={"events": tuple(told), "alerts": alerts})

    def start_rollout(self, request: RolloutRequest) -> RolloutView:
        """Start to bring a release to devices."""
        self._prepare_deltas(request)
        return self._ask(lambda: self._start_rollout(request))

    def _prepare_deltas(self, request: RolloutRequest) -> None:
        pairs = self._ask(lambda: self._books.delta_pairs(request, time.time()))
        if pairs:
            work = threading.Thread(target=self._make_deltas, args=(pairs,), daemon=True)
            work.start()
            # Whoever is told before they are made gets the whole file.
            work.join(DELTA_WAIT_S)

    def _make_deltas(self, pairs: Iterable[tuple[str, str]]) -> None:
        for base, file in pairs:
            try:
                ways = self._blobs.delta(base, file)
                self._ask(partial(self._keep_delta, base, file, ways))
            except Exception:
                # A delta saves bytes; without it the file travels whole.
                log.exception("no delta for %s", file)

    def plan_rollout(self, request: RolloutRequest) -> RolloutPlanView:
        """Return what a rollout would be, and start nothing."""
        # Deltas are made as for a start: what a device fetches is known by them alone.
        self._prepare_deltas(request.model_copy(update={"approve_small_waves": True}))
        return self._ask(lambda: self._books.plan_view(request, time.time()))

    def rollouts(self) -> list[RolloutView]:
        """Return all rollouts, the newest first."""
        # Made here, on the caller's thread: with many devices it takes a while.
        known, census = self._ask(
            lambda: (tuple(self._books.rollouts.values()), self._census.copy())
        )
        now = time.time()
        return [present.rollout_view(each, census, now) for each in reversed(known)]

    def rollout(self, id: str) -> RolloutView:
        """Return one rollout with its devices."""
        rollout, census = self._ask(lambda: (self._books.find_rollout(id), self._census.copy()))
        return present.rollout_view(rollout, census, time.time(), with_devices=True)

    def abort_rollout(self, id: str, reason: str) -> RolloutView:
        """Call a rollout off and take its devices back."""
        return self._ask(lambda: self._abort_rollout(id, reason))

    def roll_back_rollout(self, id: str, reason: str) -> RolloutView:
        """Take the devices of a rollout back, even when it is over."""
        return self._ask(lambda: self._roll_back_rollout(id, reason))

    def pause_rollout(self, id: str, reason: str) -> RolloutView:
        """Open no wave and let no device fetch until it is resumed."""
        return self._ask(lambda: self._pause_rollout(id, reason))

    def resume_rollout(self, id: str) -> RolloutView:
        """Go on with a paused rollout where it stood."""
        return self._ask(lambda: self._resume_rollout(id))

    def approve_rollout(self, id: str, reason: str) -> RolloutView:
        """Let the open wave pass although no test decided."""
        return self._ask(lambda: self._approve_rollout(id, reason))

    def promote_rollout(self, id: str, reason: str) -> RolloutView:
        """Open all waves of a rollout at once."""
        return self._ask(lambda: self._promote_rollout(id, reason))

    def send_command(self, device: str, verb: str) -> CommandView:
        """Send a one-shot request to a device."""
        return self._ask(lambda: self._send_command(device, verb))

    def command(self, device: str, id: str) -> CommandView:
        """Return a command and its answer as far as it came."""
        return self._ask(lambda: self._command(device, id))

    def request_samples(self, wanted: CaptureRequest) -> list[CaptureRequestView]:
        """Ask devices for inputs of a model; each answers for itself."""
        return self._ask(lambda: self._request_samples(wanted))

    def sample_requests(self) -> list[CaptureRequestView]:
        """Return what was asked for, the newest first."""
        now = time.time()
        return [_settled(view, now) for view in self._samples.requests()]

    def samples(
        self, model: str | None, device: str | None, request: str | None
    ) -> list[SampleView]:
        """Return captured inputs (of a model, a device, a request), the newest first."""
        wanted = {"model": model, "device": device, "request": request}
        asked = {key: value for key, value in wanted.items() if value is not None}
        return self._samples.samples(
            lambda view: all(getattr(view, key) == value for key, value in asked.items())
        )

    def sample(self, id: str) -> SampleView:
        """Return one captured input."""
        return self._samples.sample(id)

    def sample_data(self, id: str) -> bytes:
        """Return the bytes of a captured input."""
        return self._samples.data(id)

    def delete_samples(self, id: str) -> Deleted:
        """Delete a captured input, or a request with all of its own."""
        return self._ask(lambda: self._samples.delete(id))

    def device_config(self, id: str) -> str:
        """Return the text of an `agent.toml` with which a device joins this fleet."""
        return agent_toml(id, self._broker_url, *self._device_login, self.public_key)

    def events(
        self, limit: int, kind: str = "", about: str = "", since: float = 0.0, after: int = 0
    ) -> list[EventView]:
        """Return what happened lately, the newest first; those `after` an id the oldest first."""

        def look() -> list[EventView]:
            self._save_events()
            return self._store.events(max(0, min(limit, 1000)), kind, about, since, after)

        return self._ask(look)

    # ---- the loop

    def _ask(self, run: Callable[[], T]) -> T:
        """Run something on the loop and return its answer, or raise what it raised."""
        if self._ended.is_set() or not self._thread.is_alive():
            raise _not_running()
        answer: Future[T] = Future()
        try:
            self._queue.put(_Call(run, answer), timeout=CALL_S)
            return answer.result(CALL_S)
        except (queue.Full, FutureTimeout):
            raise Refusal(503, f"no answer within {CALL_S:.0f} s", "try again") from None

    def _run(self) -> None:
        while True:
            events = self._wait()
            for event in events:
                if isinstance(event, _Stop):
                    self._guarded(self._commit)
                    return
                self._guarded(partial(self._take, event))
            now = time.time()
            if now >= self._rest_until:
                self._turn(now)

    def _wait(self) -> list[Any]:
        """Return what is on the queue; wait for it until the next deadline."""
        events: list[Any] = []
        with suppress(queue.Empty):
            events.append(self._queue.get(timeout=max(0.0, self._wake_at() - time.time())))
            while len(events) < MAX_TAKEN:
                events.append(self._queue.get_nowait())
        return events

    def _guarded(self, run: Callable[[], None]) -> bool:
        """Run something; whatever goes wrong in it must not end the loop."""
        try:
            run()
        except Exception:
            log.exception("the controller's loop met an error and goes on")
            return False
        return True

    def _wake_at(self) -> float:
        """Return when there is something to do even if nothing is heard."""
        now = time.time()
        times = [now + IDLE_S, self._prune_at]
        if self._telemetry.pending():
            times.append(self._telemetry.merge_at())
        if self._commit_at is not None:
            times.append(self._commit_at)
        if self._books.active():
            times.append(self._step_at)
        if self._connected:
            times += self._subscribe_at[:1]
            if self._link.has_room():
                times += [
                    t for t in (self._sender.next_due(), self._courier.next_due()) if t is not None
                ]
        return max(min(times), self._rest_until)

    def _turn(self, now: float) -> None:
        """Do what is due; what fails does not keep the rest from being done."""
        due: list[Callable[[], None]] = []
        if self._commit_at is not None and (now >= self._commit_at or self._ingest.due):
            due.append(self._commit)
        if now >= self._step_at:
            self._news = False
            due.append(partial(self._decide, now))
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_S
            due.append(partial(self._prune, now))
        if self._telemetry.merge_due(now):
            due.append(partial(self._merge, now))
        if self._connected:
            due.append(partial(self._speak, now))
        failed = [each for each in due if not self._guarded(each)]
        if failed:
            # A full disk, say. What failed is still to be done; it is not hurried.
            self._rest_until = now + RETRY_S

    def _take(self, event: Any) -> None:
        match event:
            case _Call():
                _answer(event)
            case Heard():
                self._hear(event, time.time())
            case LinkUp():
                self._link_up(time.time())
            case LinkDown():
                self._link_down(event.reason)
            case Drained():
                pass

    # ---- what is heard

    def _link_up(self, now: float) -> None:
        self._connected = True
        log.info("connected to the broker at %s", self._broker_url)
        self._tell("broker", "broker", "connected")
        # NATS misses what is retained while a subscription is being made, and just after its own
        # restart.
        self._subscribe_at = [now + random.uniform(*s) for s in RESUBSCRIBE_S]  # noqa: S311
        self._courier.everything(now)
        self._upkeep.link_up(now)

    def _link_down(self, reason: str) -> None:
        if self._connected:
            self._tell("broker", "broker", reason)
        self._connected = False
        self._upkeep.link_down()
        log.warning("broker at %s: %s; trying again", self._broker_url, reason)

    def _hear(self, heard: Heard, now: float) -> None:
        id, body = heard.topic.owner, heard.body
        if id not in self._census:
            if len(self._census) >= MAX_DEVICES:
                self._link.dropped["devices"] += 1
                return
            self._tell("device", id, "heard of for the first time")
        clash = self._census.get(id).clash(now)
        match body:
            case Reported():
                self._hear_reported(body, now, heard.retained)
            case Status():
                self._census.hear_status(body, now, retained=heard.retained)
                if body.online and not heard.retained:
                    self._courier.woke(id, now)
            case FetchRequest():
                self._census.hear(id, now)
                with self._sending():
                    refused = self._sender.request(id, body, now)
                if refused is not None:
                    log.debug("%s: fetch refused: %s", id, refused)
                return
            case Batch():
                self._hear_batch(body, heard.payload, now)
            case CommandResult():
                self._census.hear(id, now)
                self._hear_result(body)
            case Sample() | CaptureReport():
                self._census.hear(id, now)
                self._hear_sample(body, now)
        if self._census.get(id).clash(now) and not clash:
            self._tell("clash", id, "two agents speak with this id")
        self._unsaved.add(id)
        self._commit_soon(now)
        self._has_news(now)

    def _hear_reported(self, reported: Reported, now: float, retained: bool) -> None:
        id = reported.device
        before = self._census.get(id).reported
        if not self._census.hear_reported(reported, now, retained=retained):
            return
        self._courier.taken(id, reported.desired_revision)
        known = {_key(d) for d in before.deployments} if before else set()
        for deployment in reported.deployments:
            if deployment.phase.final and _key(deployment) not in known:
                reason = f" {deployment.reason}" if deployment.reason else ""
                detail = f": {deployment.detail}" if deployment.detail else ""
                release = ReleaseRef(deployment.model, deployment.version)
                text = f"{release} {deployment.purpose} {deployment.phase}{reason}{detail}"
                self._tell("deployment", id, text)
        ours = self._books.revisions.get(id)
        if ours is None or reported.desired_revision <= ours:
            return
        if now - self._reissued.get(id, 0.0) >= REISSUE_S:
            # We were restored from a backup: what we say must not look old to the device.
            self._reissued[id] = now
            self._apply([], [], [id], now)

    def _hear_batch(self, batch: Batch, payload: bytes, now: float) -> None:
        ledger = self._ingest.ledger(batch.device)
        for health in batch.health:
            self._census.hear_health(health, now, anew=ledger.restarts(health.boot, health.seq))
        if not batch.health:
            self._census.hear(batch.device, now)
        self._ingest.take(batch, payload, now)

    def _hear_result(self, result: CommandResult) -> None:
        known = self._store.command(result.device, result.id)
        if known is not None and known[0].outcome == "waiting":
            answered = {"outcome": result.outcome, "detail": result.detail[:500]}
            self._samples.answered(result.id, result.outcome, result.detail[:500])
            self._store.save_command(known[0].model_copy(update=answered), known[1])

    def _hear_sample(self, body: Sample | CaptureReport, now: float) -> None:
        try:
            ack = (
                self._samples.reported(body)
                if isinstance(body, CaptureReport)
                else self._samples.take(body, now)
            )
        except OSError as error:
            # Not acknowledged: the device sends it again.
            log.error("samples of %s: %s", body.device, error)
            return
        if ack is not None:
            self._link.publish(Topic(Kind.SAMPLE_ACK, body.device), encode(ack))

    # ---- what is decided

    def _has_news(self, now: float) -> None:
        if not self._news:
            self._news = True
            self._step_at = min(self._step_at, max(now + STEP_S, self._rested_at))

    def _decide(self, now: float) -> None:
        """Let every rollout that is not over take its step, and rest."""
        began = time.monotonic()
        try:
            self._step_all(now)
        finally:
            took = time.monotonic() - began
            self._rested_at = time.time() + STEP_REST * took
            self._step_at = max(now + TICK_S, self._rested_at)

    def _step_all(self, now: float) -> None:
        changed: list[Rollout] = []
        orders: list[Assign] = []
        for rollout in self._books.active():
            after, more = step(rollout, self._census, now)
            orders += more
            if notable(rollout, after):
                changed.append(after)
            else:
                self._books.rollouts[rollout.id] = after
        if changed or orders:
            self._apply(changed, orders, [], now)

    def _apply(
        self, rollouts: list[Rollout], orders: list[Assign], reissue: list[str], now: float
    ) -> None:
        """Store what was decided, and then make it so."""
        assignments = self._books.ordered(orders)
        rows = []
        for device in dict.fromkeys((*assignments, *reissue)):
            current = assignments.get(device, self._books.orders(device))
            desired = self._books.desired(device, current)
            rows.append(DesiredRow(device, desired.revision, self._sealer.seal(desired)))
        bad = {
            after.release: f"{after.id} was called off: {after.verdicts[-1].words}"
            for after in rollouts
            if condemned(self._books.rollouts.get(after.id), after)
            and after.release not in self._books.quarantined
        }
        kept = [quarantined(name, reason, now) for name, reason in bad.items()]
        self._store.apply(
            Change(
                rollouts=rollouts,
                assignments=[(o.device, o.model, o.assignment) for o in orders],
                desired=rows,
                events=[*self._rollout_events(rollouts, now), *(event for _, event in kept)],
                alert_values=[value for value, _ in kept],
            )
        )
        self._books.quarantined.update(bad)
        self._books.assignments.update(assignments)
        for rollout in rollouts:
            self._books.rollouts[rollout.id] = rollout
        for row in rows:
            self._issue(row, now)

    def _issue(self, row: DesiredRow, now: float) -> None:
        """Let a stored document be published, and what it offers be fetched."""
        self._books.revisions[row.device] = row.revision
        self._documents[row.device] = row.document
        self._courier.revised(row.device, row.revision, self._census.get(row.device).revision, now)
        self._sender.allow(row.device, self._books.offered(row.device))

    def _rollout_events(self, rollouts: Iterable[Rollout], now: float) -> list[EventView]:
        events = []
        for rollout in rollouts:
            for text in news(self._books.rollouts.get(rollout.id), rollout):
                log.info("rollout %s: %s", rollout.id, text)
                events.append(EventView(at=now, kind="rollout", subject=rollout.id, text=text))
        return events

    # ---- what is published

    def _speak(self, now: float) -> None:
        if self._subscribe_at and now >= self._subscribe_at[0]:
            self._subscribe_at.pop(0)
            self._link.subscribe()
        if self._link.has_room():
            for device in self._courier.due(now, limit=TOLD_AT_ONCE):
                self._link.publish(Topic(Kind.DESIRED, device), self._documents[device])
        if self._link.has_room():
            with self._sending():
                self._send_chunks(now)

    def _send_chunks(self, now: float) -> None:
        for due in self._sender.due(now):
            chunk, offer = due.chunk, self._offers[due.chunk.artifact]
            try:
                payload = self._blobs.read_chunk(offer, chunk.part, chunk.number)
            except OSError as error:
                log.error("chunk %d of %s: %s", chunk.number, chunk.artifact, error)
                continue
            frame = ChunkFrame(chunk.part, chunk.number, payload, due.crowded, due.followed)
            if self._link.publish(_frame_topic(chunk), frame.encode()):
                self._chunks_published += 1
                self._chunk_bytes_published += len(payload)

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """Count the CPU time of what is done within as the sender's."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._sender_cpu_s += time.thread_time() - began

    def _acknowledge(self, acked: Mapping[str, int]) -> None:
        for device, seq in acked.items():
            self._link.publish(Topic(Kind.ACK, device), encode(Ack(device=device, seq=seq)))

    # ---- what is kept

    def _commit_soon(self, now: float) -> None:
        if self._commit_at is None:
            self._commit_at = now + COMMIT_S

    def _commit(self) -> None:
        """Store telemetry, devices and events; only then acknowledge."""
        told = self._ingest.events()
        acked = self._ingest.commit()
        for event in told:
            self._tell(event.kind, event.device, event.text)
        self._store.save_devices([self._census.get(id) for id in self._unsaved])
        self._unsaved.clear()
        self._save_events()
        self._commit_at = None
        self._acknowledge(acked)

    def _tell(self, kind: str, subject: str, text: str) -> None:
        self._events.append(EventView(at=time.time(), kind=kind, subject=subject, text=text))
        del self._events[:-MAX_EVENTS]
        self._commit_soon(time.time())

    def _save_events(self) -> None:
        self._store.add_events(self._events)
        self._events = []

    def _snapshot(self) -> Snapshot:
        """Return what is known at this moment, for metrics."""
        health = self._health()
        return Snapshot(
            at=time.time(),
            started_at=self._started_at,
            version=VERSION,
            broker_connected=self._connected,
            queue_items=self._queue.qsize(),
            devices=tuple(self._census),
            rollouts=tuple(self._books.rollouts.values()),
            releases=tuple(self._books.releases.values()),
            notices=self._upkeep.alerts.told(),
            alerts=self._upkeep.alerts.fire_counts(),
            chunks_sent=health.chunks_published,
            chunk_bytes_sent=health.chunk_bytes_published,
            chunks_refused=health.chunks_refused,
            ingest=IngestCounts(
                received=dict(self._ingest.received),
                dropped=dict(self._link.dropped + self._ingest.dropped),
                missing=self._ingest.missing,
                clock_odd=self._ingest.clock_odd,
            ),
        )

    def _day_before(self, model: str, at: float) -> ReportView:
        known, _ = self._ask(lambda: self._books.reported_on(model, None))
        frame = Frame.over(model, None, None, int(at) - RECENT_S, int(at), int(at))
        return report(frame, gather(frame, self._telemetry, known, {}, course=False))

    def _merge(self, now: float) -> None:
        self._telemetry.merge(now)

    def _labels_of(self, device: str) -> dict[str, str]:
        reported = self._census.get(device).reported
        return dict(reported.labels) if reported is not None else {}

    def _prune(self, now: float) -> None:
        self._store.prune()
        if self._telemetry.prune(now):
            self._prune_at = now + RETRY_S  # there is more
        self._samples.prune(now)
        rollouts = self._books.rollouts
        over = [id for id, rollout in rollouts.items() if rollout.status.final]
        gone = over[: max(0, len(rollouts) - MAX_ROLLOUTS)]
        if gone:
            self._store.drop_rollouts(gone)
            for id in gone:
                del rollouts[id]

    def _restore(self) -> None:
        """Build everything from the store."""
        for release in self._store.releases():
            self._keep_release(release, self._offers_of(release))
        for (base, file), ways in self._blobs.deltas().items():
            self._keep_delta(base, file, ways)
        for device in self._store.devices():
            self._census.restore(device)
        for id, assignment in self._store.assignments():
            self._books.assignments.setdefault(id, {})[assignment.model] = assignment
        for rollout in self._store.rollouts():
            self._books.rollouts[rollout.id] = rollout
        for row in self._store.desired():
            self._issue(row, time.time())

    def _offers_of(self, release: Release) -> tuple[tuple[Offer, ...], ...]:
        files = dict.fromkeys(file.digest for file in release.manifest.all_files())
        try:
            return tuple(self._blobs.offers(each) for each in (release.digest, *files))
        except OSError as error:
            raise FleetError(
                f"{release.manifest.ref}: a file of this release is gone: {error}",
                "restore the whole data directory from one backup",
            ) from error

    def _keep_release(self, release: Release, offers: tuple[tuple[Offer, ...], ...]) -> None:
        self._books.keep_release(release, offers)
        self._offers.update({offer.index: offer for ways in offers for offer in ways})

    def _keep_delta(self, base: str, file: str, ways: tuple[Offer, ...]) -> None:
        self._books.deltas[base, file] = ways
        self._offers.update({offer.index: offer for offer in ways})

    # ---- answers to the API, on the loop

    def _health(self) -> HealthView:
        now = time.time()
        return HealthView(
            version=VERSION,
            broker_url=self._broker_url,
            broker_connected=self._link.connected,
            devices=len(self._census),
            devices_online=sum(device.online(now) for device in self._census),
            chunks_published=self._chunks_published,
            chunk_bytes_published=self._chunk_bytes_published,
            chunks_refused=self._sender.refused,
            sender_cpu_s=self._sender_cpu_s + self._link.cpu_s,
            alerts_firing=self._upkeep.alerts.severities(),
        )

    def _device_view(self, id: str, scores: Iterable[Totals]) -> DeviceView:
        missing = self._ingest.ledger(id).missing
        return self._books.device_view(id, scores, missing, time.time())

    def _check_file(self, manifest: Manifest, file: File) -> None:
        if not self._blobs.has(file.digest):
            raise Refusal(
                422, f"{manifest.ref}: {file.name} ({file.digest}) was not sent", "push it again"
            )
        size = self._blobs.size(file.digest)
        if size != file.size_bytes:
            raise Refusal(
                422,
                f"{manifest.ref}: expected {file.name} to have {file.size_bytes} bytes, got {size}",
                "push it again",
            )

    def _add_release(
        self, manifest: Manifest, offers: tuple[tuple[Offer, ...], ...]
    ) -> tuple[ReleaseView, bool]:
        new = self._books.same_release(manifest) is None
        if new:
            now = time.time()
            release = Release(manifest.digest, manifest, now)
            event = EventView(at=now, kind="release", subject=str(manifest.ref), text="pushed")
            self._store.add_release(release, event)
            self._keep_release(release, offers)
        view = self._books.release_view(manifest.model, manifest.version)
        return view.model_copy(update={"manifest": None}), new

    def _seal_bundle(
        self, model: str, version: int, device: str | None, install: bool
    ) -> BundleSeal:
        seal = self._books.bundle_seal(model, version, device, install, secrets.token_hex(6))
        use = f", to be installed as {seal.release.rollout}" if install else ""
        text = f"exported for {device or 'any device'}{use}"
        self._tell("release", str(seal.release.ref), text)
        return seal

    def _start_rollout(self, request: RolloutRequest) -> RolloutView:
        now = time.time()
        rollout = self._books.plan(request, now)
        older: list[Rollout] = []
        orders: list[Assign] = []
        for each in self._books.active():
            if each.model == rollout.model:
                ended, let_go = supersede(each, self._census, rollout.id, now)
                older.append(ended)
                orders += let_go
        rollout, new = step(rollout, self._census, now)
        self._apply([*older, rollout], [*orders, *new], [], now)
        return self._books.rollout_view(rollout.id, now)

    def _abort_rollout(self, id: str, reason: str) -> RolloutView:
        now = time.time()
        return self._turn_to(id, lambda it: abort(it, f"by the operator: {reason}", now), now)

    def _roll_back_rollout(self, id: str, reason: str) -> RolloutView:
        now = time.time()
        ordered = self._books.to_take_back(id)
        because = f"by the operator: {reason}"
        return self._turn_to(id, lambda it: roll_back(it, ordered, because, now), now)

    def _pause_rollout(self, id: str, reason: str) -> RolloutView:
        return self._turn_to(id, lambda it: pause(it, f"by the operator: {reason}"), time.time())

    def _resume_rollout(self, id: str) -> RolloutView:
        now = time.time()
        self._books.check_free(self._books.find_rollout(id).release)
        return self._turn_to(id, lambda it: resume(it, now), now)

    def _approve_rollout(self, id: str, reason: str) -> RolloutView:
        now = time.time()
        rollout = self._books.find_rollout(id)
        if rollout.approved == rollout.open and not rollout.status.final:
            show = f"fleet rollout status {id}"
            raise Refusal(409, f"{id}: wave {rollout.open} is approved already", show)
        return self._turn_to(id, lambda it: approve(it, f"by the operator: {reason}", now), now)

    def _promote_rollout(self, id: str, reason: str) -> RolloutView:
        now = time.time()
        rollout = self._books.find_rollout(id)
        if rollout.status == "running" and rollout.open >= len(rollout.waves):
            show = f"fleet rollout status {id}"
            raise Refusal(409, f"{id}: all its waves are open already", show)
        if rollout.status == "paused":
            raise Refusal(409, f"{id} is paused", f"fleet rollout resume {id}, and then this again")
        return self._turn_to(id, lambda it: promote(it, f"by the operator: {reason}", now), now)

    def _turn_to(self, id: str, change: Callable[[Rollout], Rollout], now: float) -> RolloutView:
        """Do what the operator wants with a rollout, or refuse where it makes no sense (409)."""
        rollout = self._books.find_rollout(id)
        after = change(rollout)
        if after is rollout:
            raise Refusal(409, f"{id} is {rollout.status} already", f"fleet rollout status {id}")
        after, orders = step(after, self._census, now)
        self._apply([after], orders, [], now)
        return self._books.rollout_view(id, now)

    def _request_samples(self, wanted: CaptureRequest) -> list[CaptureRequestView]:
        if wanted.version is not None:
            self._books.find_release(wanted.model, wanted.version)
        elif not self._books.release_views(wanted.model):
            raise Refusal(404, f"no model {wanted.model!r}", "fleet model list")
        devices = select(parse_target(wanted.to), {each.id: each.facts for each in self._census})
        if len(devices) > MAX_ASKED:
            text = f"--to: expected at most {MAX_ASKED} devices, got {len(devices)}"
            raise Refusal(422, text, "fleet samples request MODEL --device ID")
        return [self._request_sample(device, wanted) for device in sorted(devices)]

    def _request_sample(self, device: str, wanted: CaptureRequest) -> CaptureRequestView:
        now = time.time()
        fields = wanted.model_dump(exclude={"to", "for_s"})
        order = CaptureOrder(**fields, until=int(now) + wanted.for_s)
        view = CaptureRequestView(
            id="", device=device, asked_at=now, until=order.until, outcome="offline",
            **{key: fields[key] for key in ("model", "version", "kind", "count")},
        )  # fmt: skip
        if not self._census.get(device).online(now):
            return view
        id = f"c-{secrets.token_hex(16)}"
        view = view.model_copy(update={"id": id, "outcome": "waiting"})
        self._samples.asked(view)
        self._send_command(device, CAPTURE, order, id)
        return view

    def _send_command(
        self, device: str, verb: str, capture: CaptureOrder | None = None, id: str = ""
    ) -> CommandView:
        self._books.check_device(device)
        if verb not in VERBS and capture is None:
            raise Refusal(422, f"verb: expected one of {', '.join(VERBS)}, got {verb[:40]!r}")
        now = time.time()
        show = f"fleet device show {device}"
        if not self._link.connected:
            raise Refusal(503, "the controller has no connection to its broker", "try again")
        if not self._census.get(device).online(now):
            raise Refusal(409, f"{device} is offline, and commands do not wait", show)
        id = id or f"c-{secrets.token_hex(8)}"
        expires_at = int(now) + COMMAND_S
        view = CommandView(id=id, device=device, verb=verb, outcome="waiting")
        self._store.save_command(view, expires_at)
        command = Command(device=device, id=id, verb=verb, expires_at=expires_at, capture=capture)
        self._link.publish(Topic(Kind.COMMAND, device, verb, id), self._sealer.seal(command))
        self._tell("command", device, f"{verb} sent as {id}")
        return view

    def _command(self, device: str, id: str) -> CommandView:
        known = self._store.command(device, id)
        if known is None:
            raise Refusal(404, f"no command {id!r} to {device}", f"fleet device show {device}")
        view, expires_at = known
        if view.outcome == "waiting" and time.time() > expires_at:
            return view.model_copy(update={"outcome": "expired"})
        return view


def _settled(view: CaptureRequestView, now: float) -> CaptureRequestView:
    """Return a request that no device answered in time as such."""
    if view.outcome == "waiting" and now > view.asked_at + COMMAND_S:
        return view.model_copy(update={"outcome": "expired"})
    return view


def _answer(call: _Call) -> None:
    """Run a call; its error is the caller's."""
    try:
        call.answer.set_result(call.run())
    except Exception as error:
        call.answer.set_exception(error)


def _frame_topic(chunk: Chunk) -> Topic:
    """Return where a chunk goes: to all who want it, or to one device."""
    if chunk.device:
        kind = Kind.OWN_INDEX if chunk.part == "index" else Kind.OWN_DATA
        return Topic(kind, chunk.device, id=chunk.artifact)
    return Topic(Kind.INDEX if chunk.part == "index" else Kind.DATA, chunk.artifact)


def _not_running() -> Refusal:
    return Refusal(503, "the controller is not running", "fleet serve")


def _rest_of(events: "queue.Queue[Any]") -> Iterator[Any]:
    with suppress(queue.Empty):
        while True:
            yield events.get_nowait()


def _key(deployment: DeploymentReport) -> tuple[str, ...]:
    """Return what makes the end of a deployment news."""
    return (
        deployment.model,
        deployment.rollout,
        deployment.purpose,
        deployment.manifest,
        deployment.phase,
    )
