"""Routes an event to the deciders, and then lets every decider press on.

`step` is the whole agent: what it is given and what it returns are values, so that a simulator
or a test can run a hundred thousand agents without a disk or a clock.
"""

from dataclasses import replace

from agent.core import deploy, ends, fetching, imports, preflight, serve, telemetry
from agent.core.actions import (
    Action,
    DrainEngine,
    Exit,
    HearSampleAck,
    LookAtSamples,
    PublishOnline,
    PublishReported,
    Ready,
    TakeImports,
    Yield,
)
from agent.core.events import (
    AckCame,
    BlobRefused,
    BlobStored,
    Booted,
    BundleReady,
    CaptureOver,
    CommandCame,
    Connected,
    ConsentWithdrawn,
    DesiredCame,
    Disconnected,
    EngineExited,
    EngineFailed,
    EngineHung,
    EngineReady,
    Event,
    FrameBroken,
    FramesCame,
    HealthSampled,
    ImportsTaken,
    ManifestRead,
    MemoryMeasured,
    Refused,
    ReportHeard,
    ReportsDropped,
    SampleAckCame,
    ScoresCame,
    SourceFailed,
    SourceFrame,
    SpaceMeasured,
    StopAsked,
    Ticked,
    TransferFailed,
    TransferOpened,
    TwinSeen,
)
from agent.core.lifecycle import TRIAL_DEADLINE_S
from agent.core.reconcile import key_of
from agent.core.report import report
from agent.core.retention import Space, pinned_after
from agent.core.state import AgentState, Deployment, Instant
from agent.core.turn import Turn
from wire.twin import Desired, DesiredRelease, Phase, Reason

PROGRESS_S = 2.0
"""How often mere figures in `Reported` are published."""

LAST_PROGRESS_S = 60.0
"""And those of a probation in the end, doubled from report to report: it may take days, on many
devices at once."""

STALLED_S = 10.0
"""Without a byte for this long a fetch has no speed."""

LOOK_S = 5.0
"""How often what was captured is looked at, while there is an order."""

FIRST_YIELD_S = 60.0
LAST_YIELD_S = 900.0


def step(state: AgentState, event: Event, now: Instant) -> tuple[AgentState, list[Action]]:
    """Return the state after `event`, and what to do about it, in order."""
    turn = Turn.of(state, now)
    _route(turn, event)
    if turn.state.booted and not turn.state.stopping:
        deploy.converge(turn)
        serve.forget_crashes(turn)
        serve.ensure_serving(turn)
        deploy.press_on(turn)
        telemetry.on_time(turn)
        _look_at_samples(turn)
        if now.mono >= turn.state.next_collect:
            ends.collect(turn)
        _publish(turn)
    turn.state.memory = None
    if isinstance(event, BundleReady) and not turn.state.stopping:
        # Last, so that this step deletes nothing of what is moved in.
        turn.do(TakeImports())
    return turn.result()


def _route(turn: Turn, event: Event) -> None:
    match event:
        case Booted():
            _boot(turn, event)
        case Connected():
            _connected(turn)
        case Disconnected():
            _disconnected(turn)
        case ReportHeard():
            fetching.on_report_heard(turn)
        case DesiredCame(desired):
            _desired(turn, desired)
        case Refused(text):
            telemetry.refuse(turn, text)
        case FramesCame(index, frames):
            for frame in frames:
                fetching.on_frame(turn, index, frame)
        case FrameBroken(index, text):
            fetching.on_broken(turn, index, text)
        case SourceFrame(url, index, frame):
            fetching.on_source_frame(turn, url, index, frame)
        case SourceFailed(url, detail):
            fetching.on_source_failed(turn, url, detail)
        case AckCame(sequence):
            telemetry.on_ack(turn, sequence)
        case CommandCame(command):
            telemetry.on_command(turn, command)
        case TwinSeen(nonce, since):
            _twin(turn, nonce, since)
        case TransferOpened(transfer, index, present):
            fetching.on_opened(turn, transfer, index, present)
        case TransferFailed(transfer, reason, detail):
            fetching.on_transfer_failed(turn, transfer, reason, detail)
        case BlobStored(file):
            fetching.on_stored(turn, file)
        case BlobRefused(file, reason, detail):
            fetching.on_refused(turn, file, reason, detail)
        case ManifestRead(digest, manifest, detail):
            preflight.on_manifest(turn, digest, manifest, detail)
        case SpaceMeasured(free_bytes, sizes, memory):
            preflight.on_space(turn, Space(free_bytes, sizes, memory_free_bytes=memory))
        case MemoryMeasured():
            turn.state.memory = event
        case BundleReady():
            pass  # answered at the end of the step
        case ImportsTaken(found, blobs):
            deploy.on_imports(turn, found, blobs)
        case EngineReady(number, models):
            generation = serve.on_ready(turn, number, models)
            if generation is not None and generation.role == "challenger":
                deploy.on_challenger_ready(turn, generation)
        case EngineFailed() | EngineExited():
            _engine_gone(turn, event)
        case EngineHung():
            _engine_hung(turn, event)
        case ScoresCame(_, windows, tallies):
            telemetry.on_windows(turn, windows)
            for tally in tallies:
                deploy.on_tally(turn, tally)
        case HealthSampled(health):
            telemetry.on_health(turn, health)
        case ReportsDropped(counts):
            telemetry.on_dropped(turn, counts)
        case SampleAckCame(body):
            if turn.state.next_look is not None:
                turn.do(HearSampleAck(body))
        case ConsentWithdrawn(model, request, deleted):
            _withdrawn(turn, model, request, deleted)
        case CaptureOver():
            turn.state.next_look = None
        case Ticked():
            pass
        case StopAsked():
            _stop(turn)


def _boot(turn: Turn, event: Booted) -> None:
    state = turn.state
    state.booted = True
    state.journal = event.journal
    state.capabilities = event.capabilities
    state.operators = event.operators
    state.blobs = event.blobs
    state.sequence, state.acked = event.sequence, event.acked
    if event.gap_since is not None:
        telemetry.tell_gap(turn, event.gap_since)
    state.phase_since = turn.now.mono
    state.next_window = turn.now.mono + state.settings.window_s
    _keep_only_whole(turn)
    for deployment in state.journal.deployments.values():
        if deployment.phase in (Phase.TRIAL, Phase.PROBATION):
            detail = "the agent restarted"
            turn.advance(deployment, Phase.VERIFIED, detail=detail)
    imports.take(turn, event.imports)
    fetching.on_booted(turn)
    ends.collect(turn)
    turn.do(Ready())
    state.report_wanted = True


def _keep_only_whole(turn: Turn) -> None:
    """Drop a champion whose files are gone; the previous release takes its place if it is whole."""
    journal = turn.state.journal
    champions, previous = dict(journal.champions), dict(journal.previous)
    for model, champion in journal.champions.items():
        if turn.state.blobs.issuperset(champion.files):
            continue
        turn.say(f"{model}@{champion.version}: files are missing from disk", "error")
        del champions[model]
        before = previous.pop(model, None)
        if before is not None and turn.state.blobs.issuperset(before.files):
            champions[model] = before
    for model, before in list(previous.items()):
        if not turn.state.blobs.issuperset(before.files):
            del previous[model]
    pinned = pinned_after(journal, champions, previous, turn.state.settings.pins)
    pinned = tuple(each for each in pinned if turn.state.blobs.issuperset(each.files))
    if pinned != journal.pinned:
        turn.record(pinned=pinned)
    if (champions, previous) != (journal.champions, journal.previous):
        # The lost release may be fetched again: what is desired has not changed.
        lost = {m for m, c in journal.champions.items() if champions.get(m) != c}
        deployments = {m: d for m, d in journal.deployments.items() if m not in lost}
        turn.record(champions=champions, previous=previous, deployments=deployments)


def _connected(turn: Turn) -> None:
    state = turn.state
    state.online = True
    if state.download is not None:
        state.download.forget_requests()
        state.download.last_progress = turn.now.mono
        fetching.on_connected(turn)
    turn.do(PublishOnline())
    state.report_wanted = True
    telemetry.on_connected(turn)


def _disconnected(turn: Turn) -> None:
    state = turn.state
    if state.online and fetching.lags(turn, most=0):
        fetching.leave(turn)  # the broker threw us out for reading too slowly
    state.online = False
    state.report_owed_at = None


def _desired(turn: Turn, desired: Desired) -> None:
    current = turn.state.journal.desired
    # Older ones and repeats are answered too: the report says which revision is followed.
    turn.state.report_wanted = True
    if current is not None and desired.revision <= current.revision:
        return
    active = turn.state.active()
    before = turn.wanted(active.model) if active is not None else None
    turn.record(desired=desired, local=_still_local(turn, desired))
    fetching.on_desired(turn, before)
    download = turn.state.download
    wanted = turn.state.journal.wanted().values()
    offered = {offer.index for release in wanted for offer in release.offers}
    if download is not None and download.offer.index not in offered:
        ends.drop_download(turn)


def _still_local(turn: Turn, desired: Desired) -> dict[str, DesiredRelease]:
    """Return the bundles' orders of those models about which the controller says nothing new."""
    journal = turn.state.journal
    before = {key_of(release) for release in journal.desired.releases} if journal.desired else set()
    changed = {release.model for release in desired.releases if key_of(release) not in before}
    return {model: order for model, order in journal.local.items() if model not in changed}


def _twin(turn: Turn, nonce: str, since: int) -> None:
    """Two agents with one id: the one that started later leaves, and both say so."""
    state, settings = turn.state, turn.state.settings
    text = f"another agent (nonce {nonce}) speaks as {settings.device}"
    if (since, nonce) > (settings.started, settings.boot):
        telemetry.refuse(turn, f"{text}; it started later and should yield")
        turn.do(PublishOnline())
        state.report_wanted = True
        return
    wait = min(FIRST_YIELD_S * 2**state.twin_yields, LAST_YIELD_S)
    state.twin_yields += 1
    turn.say(
        f"{text} and started before this one: leaving the broker for {wait:.0f} s; "
        f"give one of the two devices another `device` in its agent.toml",
        "error",
    )
    turn.do(Yield(wait))


def _engine_gone(turn: Turn, event: EngineFailed | EngineExited) -> None:
    generation = turn.state.generations.get(event.generation)
    if generation is None:
        return
    if isinstance(event, EngineFailed):
        # Its exit follows, and says nothing new.
        if generation.role == "challenger":
            deploy.on_challenger_failed(turn, generation, event.model, event.reason, event.detail)
        elif generation.role != "ending":
            serve.change(turn, generation.number, role="ending")
            reason = Reason.HUNG if event.reason is Reason.HUNG else Reason.CRASHED
            why = f"{event.reason}: {event.detail}"
            serve.on_lost(turn, generation, event.model, why, reason)
            deploy.recheck_challenger(turn)
        return
    others = {n: g for n, g in turn.state.generations.items() if n != event.generation}
    turn.state.generations = others
    why = f"exit status {event.code}" if event.code >= 0 else f"signal {-event.code}"
    if generation.role == "challenger":
        deploy.on_challenger_lost(turn, why)
    elif generation.role != "ending":
        serve.on_lost(turn, generation, event.model, why)
        deploy.recheck_challenger(turn)


def _engine_hung(turn: Turn, event: EngineHung) -> None:
    generation = turn.state.generations.get(event.generation)
    if generation is None:
        return
    # One that is not ready yet fails its trial by it, and says so itself.
    if generation.role == "challenger":
        deploy.on_challenger_hung(turn, event.detail)
    elif generation.role == "serving":
        serve.on_hung(turn, generation, event.model, event.detail)


def _withdrawn(turn: Turn, model: str, request: str, deleted: int) -> None:
    from agent.core import capture  # only where something was captured

    capture.withdrawn(turn, model, request, deleted)


def _look_at_samples(turn: Turn) -> None:
    state, now = turn.state, turn.now.mono
    if state.next_look is not None and now >= state.next_look:
        state.next_look = now + LOOK_S
        turn.do(LookAtSamples())


def _stop(turn: Turn) -> None:
    state = turn.state
    state.stopping = True
    for deployment in state.journal.deployments.values():
        if deployment.phase in (Phase.TRIAL, Phase.PROBATION):
            _give_back(turn, deployment)
    for number, generation in state.generations.items():
        if generation.role != "ending":
            serve.change(turn, number, role="ending")
            turn.do(DrainEngine(number))
    turn.do(Exit())


def _give_back(turn: Turn, deployment: Deployment) -> None:
    """A clean stop costs no attempt."""
    turn.advance(
        replace(deployment, attempts=max(deployment.attempts - 1, 0)),
        Phase.VERIFIED,
        detail="the agent was stopped",
    )


def _publish(turn: Turn) -> None:
    """Publish `Reported` at once when it matters, and at leisure when only figures moved."""
    state, now = turn.state, turn.now.mono
    if not state.online:
        return
    since, then = state.speed_mark
    if state.speed and state.transfer_bytes == then and now >= since + STALLED_S:
        state.progress_wanted = True  # so that nobody goes on reckoning with the speed
    if state.report_wanted or (state.progress_wanted and now >= _figures_due(state)):
        state.figures_alone = 0 if state.report_wanted else state.figures_alone + 1
        state.report_wanted = state.progress_wanted = False
        _clock_speed(state, now)
        state.last_report = now
        state.reports += 1
        if state.report_owed_at is None and state.download is not None:
            state.report_owed_at = now
            state.report_owed_bytes = state.download.heard_bytes
        turn.do(PublishReported(report(state)))


def _figures_due(state: AgentState) -> float:
    """Return when mere figures are worth a report."""
    active = state.active()
    if active is None or active.phase is not Phase.PROBATION:
        return state.last_report + PROGRESS_S
    wait_s = PROGRESS_S * (1 << min(state.figures_alone, 10))
    return state.last_report + min(wait_s, LAST_PROGRESS_S)


def _clock_speed(state: AgentState, now: float) -> None:
    """Take the speed since the last report, halved in with what it was before."""
    since, then = state.speed_mark
    if now - since < 1.0:
        return
    speed = (state.transfer_bytes - then) / (now - since)
    state.speed = (state.speed + speed) / 2 if state.speed and speed else speed
    state.speed_mark = (now, state.transfer_bytes)


def next_wake(state: AgentState, now: Instant) -> float:
    """Return the monotonic time by which `Ticked` is wanted; never before `now`."""
    times = [
        state.next_window,
        state.next_health,
        state.next_collect,
        fetching.next_fetch(state, now),
    ]
    down = state.generation("serving") is None and state.generation("next") is None
    if down and state.restart_at is not None and state.journal.champions:
        times.append(state.restart_at)
    if state.settled_at is not None:
        times.append(state.settled_at)
    if state.online:
        if state.send_at is not None:
            times.append(state.send_at)
        if state.progress_wanted:
            times.append(_figures_due(state))
    if state.next_look is not None:
        times.append(state.next_look)
    active = state.active()
    if active is not None and active.phase is Phase.PROBATION:
        times.append(state.next_tally)
    if active is not None and active.phase is Phase.TRIAL:
        times.append(state.phase_since + TRIAL_DEADLINE_S)
    return max(min(times), now.mono)
