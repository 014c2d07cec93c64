"""The only loop: events in, `step`, actions out. Everything that blocks is elsewhere."""

import logging
import queue
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from agent import allocator
from agent.config import MEBIBYTE, AgentConfig, engine_environ
from agent.control import Capture, ModelSpec
from agent.core import actions as do
from agent.core import events as ev
from agent.core.state import AgentState, Instant, Journal, Settings
from agent.core.step import next_wake, step
from agent.errors import DeviceError
from agent.shell import memory
from agent.shell.clock import Clock
from agent.shell.engines import Engines
from agent.shell.imports import NEWS, Imports
from agent.shell.link import Link
from agent.shell.notify import Notifier
from agent.shell.outbox import Outbox
from agent.shell.pipelines import Pipelines
from agent.shell.probe import Probe, abilities
from agent.shell.slots import Slots
from agent.shell.source import Source
from wire import VERSION
from wire.codec import encode
from wire.seal import Verifier
from wire.topics import Kind, Topic

if TYPE_CHECKING:
    from agent.shell.capture import Captures
    from agent.shell.metrics import Metrics

log = logging.getLogger("agent")

QUEUE_EVENTS = 32
"""At 120 KiB a frame, 4 MiB: beyond it the link waits, and with it the broker."""

FRAMES_A_STEP = 16
STOP_S = 12.0
DAY_S = 86_400.0
JOURNAL_RETRY_S = 5.0


class Daemon:
    """One agent: its shell around the core."""

    def __init__(self, config: AgentConfig, run_dir: Path) -> None:
        """Take the disk and the sockets.

        Raises:
            DeviceError: the data directory or a listening socket cannot be had.
        """
        self._config = config
        self._boot = secrets.token_hex(8)
        self._started = int(time.time())
        verifier = Verifier(config.controller.public_keys)
        self._queue: queue.Queue[ev.Event] = queue.Queue(QUEUE_EVENTS)
        self._own: deque[ev.Event] = deque()
        self._main = threading.get_ident()
        self._stop_asked = False
        self._exit_by: float | None = None
        self._exit_code = 0
        self._notifier = Notifier()
        self._clock = Clock(config.transfer.timezone)
        self._slots = Slots(config.data_dir, config.transfer.reserve_bytes, self._post)
        self._source = Source(config.transfer.source_ca_file, self._post)
        self._imports = Imports(config.data_dir, verifier, config.device)
        self._look_asked = False
        self._outbox = Outbox(
            config.data_dir / "outbox",
            config.telemetry.outbox_bytes,
            config.telemetry.outbox_days * DAY_S,
            started=self._started,
        )
        self._engines = Engines(config, run_dir, self._post)
        self._pipelines = Pipelines(config, self._engines.addresses())
        self._probe = Probe(config.device, self._boot, config.data_dir)
        self._metrics = _metrics(config)
        self._link = Link(
            config.broker,
            device=config.device,
            verifier=verifier,
            nonce=self._boot,
            started_at=self._started,
            post=self._post,
            samples=bool(config.capture.allow),
        )
        self._captures: Captures | None = None
        self._serving: int | None = None
        self._state = AgentState(
            Settings(
                device=config.device,
                boot=self._boot,
                version=VERSION,
                started=self._started,
                labels=dict(config.labels),
                api=self._engines.addresses(),
                window_s=config.telemetry.window_s,
                health_s=config.telemetry.health_s,
                window_chunks=config.transfer.window_chunks,
                rate_bytes_s=config.transfer.bytes_per_s,
                windows=config.transfer.windows,
                pins=config.retention.pins,
                quota_bytes=config.retention.quota_bytes,
                memory_bytes=config.engine.memory_mb * MEBIBYTE,
                memory_reserve_bytes=config.engine.reserve_mb * MEBIBYTE,
                shared=config.transfer.shared,
                consents=frozenset(config.capture.allow),
            ),
            # Orders of an earlier run, or what consent was withdrawn of.
            next_look=0.0 if self._capture_dir.is_dir() else None,
        )

    def run(self) -> int:
        """Work until a signal; return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(NEWS, self._on_news)
        able, operators = abilities(engine_environ(self._config.engine))
        able = able.model_copy(update={"max_chunk_bytes": self._config.transfer.max_chunk_bytes})
        for name, why in able.unusable.items():
            log.warning("%s cannot be used: %s", name, why)
        self._engines.leave_out(able.unusable)
        imports = self._imports.take_up(self._slots.adopt)
        journal, blobs = self._slots.load_journal(), self._slots.blobs()
        sequence, acked = self._outbox.last_seq(), self._outbox.acked
        gap = self._outbox.owed_since
        self._take(ev.Booted(journal, able, blobs, sequence, acked, gap, imports, operators))
        self._link.start()
        self._pipelines.start()
        allocator.give_back()
        try:
            while not self._over():
                self._take(self._next_event())
                self._notifier.alive()
        finally:
            self._pipelines.stop()
            self._engines.stop_all(2.0)
            self._source.close()
            if self._metrics is not None:
                self._metrics.close()
            self._link.stop()
            self._outbox.close()
            self._slots.close()
        log.info("stopped")
        return self._exit_code

    def _over(self) -> bool:
        if self._exit_by is None:
            return False
        drained = not self._engines.pids() and self._queue.empty() and not self._own
        return drained or time.monotonic() >= self._exit_by

    def _next_event(self) -> ev.Event:
        if self._own:
            return self._own.popleft()
        now = self._now()
        wait = next_wake(self._state, now) - now.mono
        if self._notifier.watchdog_s is not None:
            wait = min(wait, self._notifier.watchdog_s / 2)
        if self._exit_by is not None:
            wait = 0.05
        try:
            event = self._queue.get(timeout=max(wait, 0.0))
        except queue.Empty:
            return ev.Ticked()
        return self._with_those_behind(event) if isinstance(event, ev.FramesCame) else event

    def _with_those_behind(self, first: ev.FramesCame) -> ev.FramesCame:
        """Join the frames that wait behind these, so that a busy line costs fewer steps."""
        frames = list(first.frames)
        with suppress(queue.Empty):
            while len(frames) < FRAMES_A_STEP:
                event = self._queue.get_nowait()
                if not isinstance(event, ev.FramesCame) or event.index != first.index:
                    self._own.append(event)
                    break
                frames += event.frames
        return ev.FramesCame(first.index, tuple(frames))

    def _take(self, event: ev.Event) -> None:
        self._state, actions = step(self._state, event, self._now())
        for action in actions:
            self._carry_out(action)

    def _now(self) -> Instant:
        return self._clock.now()

    def _post(self, event: ev.Event) -> None:
        """Take an event from any thread; others wait when the queue is full, the loop never."""
        if threading.get_ident() == self._main:
            self._own.append(event)
        else:
            self._queue.put(event)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # The loop may hold the queue's lock right now, so another thread brings the news.
        if not self._stop_asked:
            self._stop_asked = True
            log.info("stopping on %s", signal.Signals(number).name)
            threading.Thread(target=self._queue.put, args=(ev.StopAsked(),), daemon=True).start()

    def _on_news(self, number: int, _frame: FrameType | None) -> None:
        if not self._look_asked:
            self._look_asked = True
            threading.Thread(target=self._queue.put, args=(ev.BundleReady(),), daemon=True).start()

    # ---- actions

    def _carry_out(self, action: do.Action) -> None:
        match action:
            case do.WriteChunk(transfer, offset, payload):
                self._slots.write_chunk(transfer, offset, payload)
            case do.PublishFetch(request):
                self._send(Kind.FETCH, encode(request))
            case do.Say(text, level):
                log.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
            case do.SaveJournal(journal):
                self._save(journal)
            case do.PublishReported(reported):
                self._send(Kind.REPORTED, encode(reported))
            case do.PublishOnline():
                self._link.publish_online()
            case do.PublishResult(verb, result):
                topic = Topic(Kind.RESULT, self._config.device, verb, result.id)
                self._link.publish(topic, encode(result))
            case do.Enqueue() | do.Forget() | do.SendOutbox():
                self._telemetry(action)
            case do.SampleHealth():
                self._sample()
            case do.Yield(seconds):
                self._link.yield_for(seconds)
            case do.Listen(index, own):
                self._link.listen(index, own)
            case do.Unlisten(index):
                self._link.unlisten(index)
            case do.StartCapture() | do.LookAtSamples() | do.HearSampleAck():
                self._capture(action)
            case do.Ready():
                self._notifier.ready()
                log.info("%s is up, farflung %s", self._config.device, VERSION)
            case do.Exit(code):
                self._notifier.stopping()
                self._pipelines.ask_stop()
                self._exit_code = code
                self._exit_by = time.monotonic() + STOP_S
            case _:
                self._disk_or_engine(action)

    def _disk_or_engine(self, action: do.Action) -> None:
        match action:
            case do.MeasureSpace():
                free, sizes = self._slots.measure_space(), self._slots.blob_sizes()
                memory_free, engines = memory.measure(self._engines.pids())
                memory_free += sum(engines.values())
                self._post(ev.SpaceMeasured(free, sizes, memory_free))
            case do.MeasureMemory():
                free, engines = memory.measure(self._engines.pids())
                # Before any other event: it is true of this moment.
                self._own.appendleft(ev.MemoryMeasured(free, engines, self._slots.blob_sizes()))
            case do.OpenTransfer(offer):
                self._slots.open_transfer(offer)
            case do.WriteIndex(transfer, index):
                self._slots.write_index(transfer, index)
            case do.FinishTransfer(offer):
                self._slots.finish(offer)
            case do.CloseTransfer(transfer):
                self._slots.close_transfer(transfer)
            case do.ReadManifest(digest):
                self._slots.read_manifest(digest)
            case do.FetchRange(url, offer, first, count):
                self._source.fetch(url, offer, first, count)
            case do.CancelRange():
                self._source.cancel()
            case do.CollectGarbage(files, transfers, heard):
                self._slots.collect_garbage(files, transfers, heard)
            case do.TakeImports():
                self._take_imports()
            case do.KeepOrder(model):
                self._imports.journalled(model)
            case do.ForgetImport(model):
                self._imports.forget(model)
            case do.StartEngine():
                located = tuple(self._located(spec) for spec in action.models)
                self._engines.start(replace(action, models=located))
            case do.ServeEngine(generation):
                self._engines.serve(generation)
                self._serving = generation
                if self._captures is not None:
                    self._tell_engine(self._captures.for_engine())
            case do.StartShadow():
                self._engines.shadow(action)
            case do.StopShadow(model, champion):
                self._engines.stop_shadow(model, champion)
            case do.AskScores(generation, windows):
                self._engines.ask_scores(generation, windows)
            case do.DrainEngine(generation, streams):
                self._engines.drain(generation, streams=streams)
            case do.KillEngine(generation):
                self._engines.kill(generation)

    def _take_imports(self) -> None:
        self._look_asked = False
        imports = self._imports.take_up(self._slots.adopt)
        files = {file for each in imports for file in each.files}
        # Before any other event: nobody else knows yet that these files are to stay.
        self._own.appendleft(ev.ImportsTaken(imports, self._slots.blobs() & files))

    def _send(self, kind: Kind, body: bytes) -> None:
        self._link.publish(Topic(kind, self._config.device), body)

    def _located(self, spec: ModelSpec) -> ModelSpec:
        return replace(
            spec,
            manifest_path=str(self._slots.blob_path(spec.manifest)),
            files={digest: str(self._slots.blob_path(digest)) for digest in spec.files},
        )

    def _telemetry(self, action: do.Enqueue | do.Forget | do.SendOutbox) -> None:
        match action:
            case do.Enqueue(item):
                if self._metrics is not None:
                    self._metrics.note(item)
                self._outbox.enqueue(item)
            case do.Forget(seq):
                self._outbox.forget(seq)
            case do.SendOutbox(ahead):
                self._send_outbox(ahead)

    def _send_outbox(self, ahead: bool) -> None:
        try:
            newest = self._outbox.newest_health() if ahead else None
            oldest = self._outbox.batch(self._config.transfer.max_chunk_bytes)
        except OSError as error:
            log.error("outbox: nothing can be sent, as nothing can be noted: %s", error.strerror)
            return
        for outgoing in (newest, oldest):
            if outgoing is not None:
                self._send(Kind.BATCH, outgoing.body)

    @property
    def _capture_dir(self) -> Path:
        return self._config.data_dir / "capture"

    def _capture(self, action: do.StartCapture | do.LookAtSamples | do.HearSampleAck) -> None:
        captures = self._captures or self._open_captures()
        due: list[tuple[Kind, bytes]] = []
        match action:
            case do.StartCapture(request, order):
                captures.start(request, order)
                self._tell_engine(each for each in captures.for_engine() if each.request == request)
            case do.LookAtSamples():
                for withdrawn in captures.withdraw():
                    self._post(ev.ConsentWithdrawn(*withdrawn))
                due = captures.look(time.time(), time.monotonic())
                if captures.idle:
                    self._captures = None
                    self._post(ev.CaptureOver())
            case do.HearSampleAck(body):
                due, ended = captures.heard(body, time.monotonic())
                self._tell_engine(ended)
        for kind, body in due:
            self._send(kind, body)

    def _open_captures(self) -> "Captures":
        from agent.shell.capture import Captures  # only where somebody asked

        capture = self._config.capture
        self._captures = Captures(
            self._capture_dir,
            self._config.device,
            capture.allow,
            max_bytes=capture.bytes,
            days=capture.days,
            message_bytes=self._config.transfer.max_chunk_bytes,
        )
        self._tell_engine(self._captures.for_engine())
        return self._captures

    def _tell_engine(self, orders: Iterable[Capture]) -> None:
        for order in orders:
            if self._serving is not None:
                self._engines.capture(self._serving, order)

    def _sample(self) -> None:
        health = self._probe.sample(self._engines.pids().values())
        untold = self._outbox.untold
        if untold and self._outbox.roomy:
            self._post(ev.ReportsDropped(untold))
        counts = {
            "outbox_waiting": self._outbox.waiting,
            "outbox_dropped": self._outbox.dropped,
            "outbox_merged": self._outbox.merged,
            "outbox_bytes": self._outbox.flash_bytes,
            "agent_starts": self._outbox.starts,
            "broker_rtt_ms": self._link.rtt_ms,
            "pipelines": self._pipelines.counts(),
            "flash_bytes_written": self._slots.flash_bytes_written + self._outbox.bytes_written,
        }
        self._post(ev.HealthSampled(health.model_copy(update=counts)))

    def _save(self, journal: Journal) -> None:
        """Write the journal, and do nothing else before it is on the disk.

        A disk too full for that is waited out: the engine goes on answering meanwhile.
        """
        told = False
        while True:
            try:
                self._slots.save_journal(journal)
            except DeviceError as error:
                if not told:
                    log.error("%s; trying again every %.0f s", error, JOURNAL_RETRY_S)
                told = True
            else:
                return
            if self._stop_asked:
                raise DeviceError("stopped while the journal could not be written")
            self._notifier.alive()
            time.sleep(JOURNAL_RETRY_S)


def _metrics(config: AgentConfig) -> "Metrics | None":
    """Return the page of metrics where one is wanted; without one nothing is imported for it."""
    if config.metrics.address is None:
        return None
    from agent.shell.metrics import Metrics

    return Metrics(config.metrics.address, config.device)
