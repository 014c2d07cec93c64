"""Moves the active deployment on: preflight, fetching, trial, probation, and how each may end."""

import math
from dataclasses import replace

from agent.control import Tally
from agent.core import imports, serve, source
from agent.core.actions import (
    AskScores,
    CloseTransfer,
    CollectGarbage,
    FinishTransfer,
    Listen,
    MeasureSpace,
    OpenTransfer,
    PublishFetch,
    ReadManifest,
    StopShadow,
    Unlisten,
    WriteChunk,
    WriteIndex,
)
from agent.core.download import ChunkVerified, Download, FrameRejected, IndexVerified
from agent.core.lifecycle import ATTEMPTS, TRIAL_DEADLINE_S
from agent.core.manners import (
    Wait,
    openings,
    rate,
    turn_after,
    wait_before_all,
    wait_before_files,
)
from agent.core.offers import all_chosen, chosen, disk_bytes
from agent.core.probation import judge
from agent.core.reconcile import Adopt, Begin, Supersede, reconcile, settled
from agent.core.retention import Room, Space, kept_files, make_room, pinned_after
from agent.core.state import AgentState, Deployment, Generation, Installed, Instant
from agent.core.turn import Turn
from wire.manifest import Manifest, Variant
from wire.transfer import ChunkFrame, Offer
from wire.twin import Capabilities, DesiredRelease, Phase, Reason

RUNTIMES = {"onnx": ("onnxruntime",), "tflite": ("ai-edge-litert", "tflite-runtime")}
TALLY_S = 1.0
COLLECT_S = 86_400.0
"""How often garbage is taken out even if nothing happens."""
LAG_S = 2.0
LAG_WINDOWS = 1.5
MOST_PAUSES = 3
"""How often a device that lags waits until it caught up; then it goes on by itself."""


def converge(turn: Turn) -> None:
    """Begin, adopt or give up deployments until desired and actual agree."""
    for wish in reconcile(turn.state.journal):
        match wish:
            case Supersede(model):
                deployment = turn.state.journal.deployments[model]
                finish(turn, deployment, Phase.SUPERSEDED, Reason.WITHDRAWN, "no longer desired")
            case Adopt(release):
                turn.put(_fresh(turn, release, Phase.COMMITTED, "already serving"))
            case Begin(release):
                turn.state.spoilt = frozenset()
                turn.put(_fresh(turn, release, Phase.QUEUED, ""))
                turn.say(f"{release.ref}: queued by {release.rollout} ({release.purpose})")


def _fresh(turn: Turn, release: DesiredRelease, phase: Phase, detail: str) -> Deployment:
    return Deployment(
        model=release.model,
        version=release.version,
        manifest=release.manifest,
        rollout=release.rollout,
        purpose=release.purpose,
        phase=phase,
        since=turn.now.wall,
        detail=detail,
    )


def press_on(turn: Turn) -> None:
    """Take the next step of the active deployment, if there is one to take now."""
    state = turn.state
    if state.stopping or not state.booted:
        return
    for _ in Phase:
        deployment = state.active()
        before = deployment.phase if deployment is not None else None
        if deployment is not None:
            _press(turn, deployment)
        after = state.active()
        if after is None or after.phase == before:
            return


def _press(turn: Turn, deployment: Deployment) -> None:
    release = turn.wanted(deployment.model)
    if release is None:
        return  # reconcile gives it up
    match deployment.phase:
        case Phase.QUEUED:
            turn.state.measured = False
            take_turn(turn, release)
            turn.advance(deployment, Phase.PREFLIGHT)
        case Phase.PREFLIGHT:
            _preflight(turn, deployment, release)
        case Phase.FETCHING:
            missing = _missing(turn, deployment.files)
            if not missing:
                _fetched(turn, deployment, release)
            elif _may_fetch(turn, deployment, wait_before_files(turn.state, release, turn.now)):
                _fetch(turn, deployment, release, missing[0])
        case Phase.VERIFIED:
            _try(turn, deployment)
        case Phase.TRIAL:
            if turn.now.mono - turn.state.phase_since >= TRIAL_DEADLINE_S:
                finish(turn, deployment, Phase.FAILED, Reason.HUNG, "the trial never answered")
        case Phase.PROBATION:
            _watch_probation(turn, deployment)


def _fetched(turn: Turn, deployment: Deployment, release: DesiredRelease) -> None:
    """Go on with everything on the disk, hashed and synced; say how long it took."""
    taken = turn.now.mono - turn.state.phase_since
    turn.advance(deployment, Phase.VERIFIED)
    sizes = {offer.file: offer.file_bytes for offer in release.offers}
    size = sum(sizes.get(digest, 0) for digest in deployment.files)
    turn.say(f"{release.ref}: fetched {size} bytes in {taken:.3f} s")


# ---- preflight


def _preflight(turn: Turn, deployment: Deployment, release: DesiredRelease) -> None:
    state = turn.state
    if not _may_fetch(turn, deployment, wait_before_all(state, release, turn.now)):
        return
    if release.manifest not in state.blobs:
        # It is small, and the day need not end before the device knows what it would fetch.
        _fetch(turn, deployment, release, release.manifest)
    elif release.manifest not in state.manifests:
        if state.finishing != release.manifest:
            state.finishing = release.manifest
            turn.do(ReadManifest(release.manifest))
    elif not state.measured:
        state.measured = True
        turn.do(MeasureSpace())


def on_manifest(turn: Turn, digest: str, manifest: Manifest | None, detail: str) -> None:
    """Take a manifest that was read from disk."""
    state = turn.state
    if state.finishing == digest:
        state.finishing = ""
    if manifest is not None:
        state.manifests = {**state.manifests, digest: manifest}
        return
    deployment = state.active()
    if deployment is not None and deployment.manifest == digest:
        state.blobs = state.blobs - {digest}
        finish(turn, deployment, Phase.REJECTED, Reason.BAD_MANIFEST, detail)


def on_space(turn: Turn, space: Space) -> None:
    """Choose the variant and see that it fits before the first byte of it is fetched."""
    # What vanished from the disk is fetched again.
    turn.state.blobs = turn.state.blobs & space.sizes.keys()
    deployment = turn.state.active()
    if deployment is None or deployment.phase is not Phase.PREFLIGHT:
        return
    release = turn.wanted(deployment.model)
    manifest = turn.state.manifests.get(deployment.manifest)
    if release is None or manifest is None:
        return
    if (manifest.model, manifest.version) != (release.model, release.version):
        detail = f"expected the manifest of {release.ref}, got that of {manifest.ref}"
        finish(turn, deployment, Phase.REJECTED, Reason.BAD_MANIFEST, detail)
        return
    variant, reason, detail = choose(manifest, turn.state.capabilities)
    if variant is None:
        finish(turn, deployment, Phase.REJECTED, reason, detail)
        return
    shared = (file.digest for file in manifest.shared_files())
    files = tuple(dict.fromkeys((deployment.manifest, variant.artifact.digest, *shared)))
    offers = {offer.file: offer for offer in all_chosen(turn.state, release, files)}
    missing = _missing(turn, files)
    unoffered = [digest for digest in missing if digest not in offers]
    if unoffered:
        detail = f"expected an offer for each file, got none for {unoffered[0][:19]}"
        finish(turn, deployment, Phase.REJECTED, Reason.BAD_MANIFEST, detail)
        return
    own, ordered = turn.state.settings.windows, release.manners.windows
    if missing and not openings(own, ordered):
        detail = f"expected windows that meet, got {', '.join(ordered)} in the order and "
        detail += f"{', '.join(own)} on this device"
        finish(turn, deployment, Phase.REJECTED, Reason.NO_PROGRESS, detail)
        return
    needed = sum(disk_bytes(offers[digest]) for digest in missing)
    deployment = replace(deployment, variant=variant.name, files=files)
    room = _room(turn, deployment, release, [offers[digest] for digest in missing], space)
    if room.lacking:
        finish(turn, deployment, Phase.REJECTED, Reason.NO_SPACE, room.lacking)
        return
    turn.advance(deployment, Phase.FETCHING)
    if room.leaving:
        _clear(turn, release, room.leaving)
    turn.say(f"{release.ref}: fetching {variant.name}, {len(missing)} files, {needed} bytes")


def _room(
    turn: Turn, deployment: Deployment, release: DesiredRelease, offers: list[Offer], space: Space
) -> Room:
    """Return how the files of these offers find room: as deltas, or else whole."""
    journal, settings = turn.state.journal, turn.state.settings
    space = replace(space, imported=frozenset(imports.kept(turn)))
    bases = {offer.base for offer in offers if offer.base is not None}
    needed = sum(disk_bytes(offer) for offer in offers)
    room = make_room(journal, deployment, bases, needed, space, settings)
    if not room.lacking or not bases:
        return room
    files = {offer.file for offer in offers}
    whole = [o for o in release.offers if o.file in files and o.base is None]
    sizes = {offer.file: disk_bytes(offer) for offer in sorted(whole, key=disk_bytes)}
    return make_room(journal, deployment, set(), sum(sizes.values()), space, settings)


def _clear(turn: Turn, release: DesiredRelease, leaving: tuple[Installed, ...]) -> None:
    """Give up previous releases for a new one."""
    previous = turn.state.journal.previous
    models = {each.model for each in leaving}
    turn.record(previous={m: i for m, i in previous.items() if m not in models})
    for each in leaving:
        turn.say(f"{each.model}@{each.version}: deleted to make room for {release.ref}", "warning")
    collect(turn)


def choose(manifest: Manifest, capabilities: Capabilities) -> tuple[Variant | None, Reason, str]:
    """Return the first variant this device can run, or why there is none."""
    reason, why = Reason.NO_RUNTIME, []
    for variant in manifest.variants:
        architectures = variant.requires.architectures
        if architectures and capabilities.architecture not in architectures:
            reason = Reason.WRONG_ARCH
            why.append(f"{variant.name} needs {' or '.join(architectures)}")
        elif variant.requires.custom_operators:
            reason = Reason.UNSUPPORTED_OPERATOR
            why.append(f"{variant.name} needs {', '.join(variant.requires.custom_operators[:3])}")
        elif not any(name in capabilities.runtimes for name in RUNTIMES[variant.format]):
            why.append(f"{variant.name} needs {' or '.join(RUNTIMES[variant.format])}")
        else:
            return variant, reason, ""
    have = ", ".join(f"{n} {v}" for n, v in capabilities.runtimes.items()) or "no runtime"
    broken = "".join(f"; {n} unusable: {w}" for n, w in capabilities.unusable.items())
    return None, reason, f"{'; '.join(why)}; here: {have}{broken}"[:480]


# ---- fetching


def _missing(turn: Turn, files: tuple[str, ...]) -> list[str]:
    return [digest for digest in files if digest not in turn.state.blobs]


def take_turn(turn: Turn, release: DesiredRelease) -> None:
    """Draw when this device begins to fetch, so that not all of a wave do at once."""
    turn.state.fetch_at = turn.now.mono + turn_after(turn.state.settings.device, release)


def on_booted(turn: Turn) -> None:
    """Wait out what is left of this device's turn; what it fetched already proves it came."""
    deployment = turn.state.active()
    release = turn.wanted(deployment.model) if deployment is not None else None
    if deployment is None or release is None or deployment.phase is not Phase.PREFLIGHT:
        return
    take_turn(turn, release)
    # A clock that was set back must not make the wait longer than it ever was.
    turn.state.fetch_at -= max(turn.now.wall - deployment.since, 0.0)


def on_desired(turn: Turn, before: DesiredRelease | None) -> None:
    """Take a new turn when a hold on the active deployment ended; `before` was its order."""
    deployment = turn.state.active()
    release = turn.wanted(deployment.model) if deployment is not None else None
    if before is None or release is None:
        return
    if before.manners.held and not release.manners.held:
        take_turn(turn, release)


def _may_fetch(turn: Turn, deployment: Deployment, wait: Wait | None) -> bool:
    """Rest while there is a reason to, saying which; then go on where it was left."""
    state, now = turn.state, turn.now.mono
    download = state.download
    if wait is None or (download is not None and download.complete):
        if state.waiting or deployment.detail:
            state.waiting = False
            turn.note(replace(deployment, detail=""))
            if download is not None and download.opened:
                _wake(turn, download)
        return True
    if not state.waiting or deployment.detail != wait.why:
        state.waiting = state.report_wanted = True
        turn.note(replace(deployment, detail=wait.why))
        turn.say(f"{deployment.model}@{deployment.version}: {wait.why}")
    # What was asked for is on its way and welcome; after that nothing is to come.
    listening = download is not None and download.opened and not download.resting
    if download is not None and listening and now >= download.expected_until():
        download.resting = True
        turn.do(Unlisten(download.offer.index))
    return False


def _wake(turn: Turn, download: Download) -> None:
    if download.resting and not download.complete:
        turn.do(Listen(download.offer.index, download.own))
    download.resume(turn.now.mono)


def next_fetch(state: AgentState, now: Instant) -> float:
    """Return when fetching next has something to do, monotonic; inf: when something comes."""
    deployment, download = state.active(), state.download
    if state.finishing or deployment is None:
        return math.inf
    if not state.waiting:
        reachable = download is not None and (state.online or download.source)
        due = download.next_due() if download is not None and reachable else None
        return math.inf if due is None else due
    release = state.journal.wanted().get(deployment.model)
    if release is None:
        return math.inf
    preflight = deployment.phase is Phase.PREFLIGHT
    wait = (wait_before_all if preflight else wait_before_files)(state, release, now)
    times = [wait.until if wait is not None else now.mono]
    if download is not None and download.opened and not download.resting:
        times.append(download.expected_until())
    return min(times)


def _fetch(turn: Turn, deployment: Deployment, release: DesiredRelease, digest: str) -> None:
    """Open the transfer of one file, or ask for more of it, or see that it came to a halt."""
    state = turn.state
    if state.finishing:
        return
    download = state.download
    if download is None:
        offer = chosen(state, release, digest)
        if offer is None:
            detail = f"expected an offer for {digest[:19]}, got none"
            finish(turn, deployment, Phase.REJECTED, Reason.BAD_MANIFEST, detail)
            return
        settings = state.settings
        seed = f"{settings.device}/{settings.boot}/{digest}"
        own = not (settings.shared and state.shared_wanted)
        state.download = Download(offer, settings.window_chunks, seed, own=own)
        state.report_owed_at = None
        turn.do(OpenTransfer(offer), Listen(offer.index, own))
        return
    if not download.opened:
        return
    download.rate_bytes_s = rate(state.settings.rate_bytes_s, release.manners.bytes_per_s)
    if download.complete:
        state.finishing = download.offer.file
        turn.do(Unlisten(download.offer.index), FinishTransfer(download.offer))
        return
    if source.ask(turn, download, state.manifests.get(deployment.manifest)):
        return
    if not state.online:
        return  # patience: no deadline runs while there is nobody to ask
    idle = turn.now.mono - download.last_progress
    if idle >= release.fetch_deadline_s:
        bad = f"; {download.bad} wrong frames were dropped" if download.bad else ""
        detail = f"no chunk for {idle:.0f} s at {download.done_bytes} bytes{bad}"
        finish(turn, deployment, Phase.TIMED_OUT, Reason.NO_PROGRESS, detail)
        return
    if not download.own:
        _keep_up(turn, download)
    for request in download.requests_due(turn.now.mono):
        turn.do(PublishFetch(request))


def lags(turn: Turn, windows: float = LAG_WINDOWS) -> bool:
    """Return whether the broker has so much in store for us that our report waits behind it.

    More than a window is more than we asked for: others ask faster than this device can hear.
    """
    state, download = turn.state, turn.state.download
    if download is None or state.report_owed_at is None:
        return False
    behind = download.heard_bytes - state.report_owed_bytes
    owed = turn.now.mono - state.report_owed_at
    return owed > LAG_S and behind > windows * download.window_bytes


def _keep_up(turn: Turn, download: Download) -> None:
    """See to it that the broker does not hold back ever more for this device."""
    if download.catching_up:
        if turn.now.mono >= download.caught_up_by:
            _rejoin(turn, download)
    elif download.overdrawn:
        leave(turn)
    elif lags(turn):
        if download.pauses >= MOST_PAUSES:
            leave(turn)
            return
        # What is on its way is not asked for again; what passes meanwhile, others may lack too.
        download.catch_up()
        turn.do(Listen(download.offer.index, own=True))  # and what is on its way
        turn.state.report_owed_at = None
        turn.state.report_wanted = True
        turn.say(f"{download.offer.transfer[:19]}: too fast for this line, catching up")


def on_report_heard(turn: Turn) -> None:
    """Everything came that the broker had for this device when it took the report."""
    state, download = turn.state, turn.state.download
    state.report_owed_at = None
    if download is None or not download.catching_up:
        return
    download.catching_up -= 1
    if download.catching_up:
        state.report_wanted = True
    else:
        _rejoin(turn, download)


def on_connected(turn: Turn) -> None:
    """Nothing is held back on a new connection."""
    download = turn.state.download
    if download is not None and download.catching_up:
        _rejoin(turn, download)


def _rejoin(turn: Turn, download: Download) -> None:
    """Hear the shared topic again."""
    download.caught_up(turn.now.mono)
    turn.state.report_owed_at = None
    if not download.resting:
        turn.do(Listen(download.offer.index, download.own))


def leave(turn: Turn) -> None:
    """Fetch the rest on this device's own topic: the shared one carries more than it can take."""
    download = turn.state.download
    if download is not None and not download.own and not download.resting:
        download.leave()
        turn.say(f"{download.offer.transfer[:19]}: too fast for this line, fetching on its own")
        turn.do(Listen(download.offer.index, own=True))


def on_opened(turn: Turn, transfer: str, index: bytes, present: frozenset[int]) -> None:
    """Start from what was on disk."""
    download = turn.state.download
    if download is None or download.offer.transfer != transfer:
        turn.do(CloseTransfer(transfer))
        return
    download.open(index, present, turn.now.mono)
    if present:
        turn.say(
            f"{transfer[:19]}: resuming, {len(present)} of {download.offer.chunks} chunks on disk"
        )


def on_frame(turn: Turn, index: str, frame: ChunkFrame) -> None:
    """Give a frame to the download it is for."""
    state = turn.state
    download = state.download
    if download is None or download.offer.index != index:
        return
    transfer = download.offer.transfer
    for event in download.receive(frame, turn.now.mono):
        match event:
            case IndexVerified(hashes):
                turn.do(WriteIndex(transfer, hashes))
            case ChunkVerified(offset, payload):
                state.transfer_bytes += len(payload)
                state.progress_wanted = True
                turn.do(WriteChunk(transfer, offset, payload))
            case FrameRejected(text):
                _count_bad(turn, download, text)


def on_source_frame(turn: Turn, url: str, index: str, frame: ChunkFrame) -> None:
    """Give a frame to the download it is for; a source that lies is asked no more for a while."""
    download = turn.state.download
    if download is None or download.offer.index != index:
        return
    bad = download.bad
    on_frame(turn, index, frame)
    if download.source != url:
        return
    if download.bad > bad:
        source.give_up(turn, download, "sent wrong bytes")
    else:
        source.works(turn, download)


def on_source_failed(turn: Turn, url: str, detail: str) -> None:
    """Turn to the broker."""
    download = turn.state.download
    if download is not None and download.source == url:
        source.give_up(turn, download, detail)


def on_broken(turn: Turn, index: str, text: str) -> None:
    """Count what came in place of a frame."""
    download = turn.state.download
    if download is not None and download.offer.index == index:
        _count_bad(turn, download, download.reject(text, turn.now.mono).text)


def _count_bad(turn: Turn, download: Download, text: str) -> None:
    turn.state.chunks_bad += 1
    if download.bad in (1, 10, 100) or download.bad % 1000 == 0:
        turn.say(f"frame dropped: {text} ({download.bad} so far)", "warning")


def on_transfer_failed(turn: Turn, transfer: str, reason: Reason, detail: str) -> None:
    """End the deployment whose bytes the disk refused; the champion is untouched."""
    download = turn.state.download
    deployment = turn.state.active()
    if download is not None and download.offer.transfer == transfer and deployment is not None:
        finish(turn, deployment, Phase.FAILED, reason, detail)


def on_stored(turn: Turn, file: str) -> None:
    """Count a file as present."""
    turn.state.blobs = turn.state.blobs | {file}
    if turn.state.finishing == file:
        turn.state.finishing = ""
        turn.state.download = None
    else:
        collect(turn)  # it was given up meanwhile


def on_refused(turn: Turn, file: str, reason: Reason, detail: str) -> None:
    """End the deployment whose file came out wrong."""
    if turn.state.finishing != file:
        return
    turn.state.finishing = ""
    download, turn.state.download = turn.state.download, None
    if download is not None and download.offer.base is not None:
        turn.state.spoilt |= {download.offer.index}
        turn.say(f"{file[:19]}: the delta failed, fetching the whole file: {detail}", "warning")
        return
    deployment = turn.state.active()
    if deployment is not None:
        finish(turn, deployment, Phase.FAILED, reason, detail)


def on_imports(turn: Turn, found: tuple[imports.Imported, ...], blobs: frozenset[str]) -> None:
    """Count the files of bundles as present; one of them need not be fetched any further."""
    state = turn.state
    state.blobs |= blobs
    if state.download is not None and not state.finishing and state.download.offer.file in blobs:
        drop_download(turn)
    imports.take(turn, found)
    collect(turn)


# ---- trial and probation


def _installed(deployment: Deployment, wall: float) -> Installed:
    return Installed(
        model=deployment.model,
        version=deployment.version,
        manifest=deployment.manifest,
        variant=deployment.variant,
        files=deployment.files,
        rollout=deployment.rollout,
        since=int(wall),
    )


def _try(turn: Turn, deployment: Deployment) -> None:
    state = turn.state
    if any(g.role != "serving" for g in state.generations.values()):
        return  # room for two engines, never three
    if deployment.attempts >= ATTEMPTS:
        detail = deployment.detail or f"{ATTEMPTS} attempts ended without an answer"
        finish(turn, deployment, Phase.FAILED, Reason.CRASHED, detail)
        return
    missing = _missing(turn, deployment.files)
    if missing:
        detail = f"{missing[0][:19]} vanished from its slot"
        finish(turn, deployment, Phase.FAILED, Reason.IO_ERROR, detail)
        return
    challenger = _installed(deployment, turn.now.wall)
    others = tuple(i for m, i in state.journal.champions.items() if m != deployment.model)
    # Journal before loading: a model that kills the process must still cost an attempt.
    turn.advance(deployment, Phase.TRIAL, attempts=deployment.attempts + 1)
    serve.launch(turn, (*others, challenger), "challenger")


def on_challenger_ready(turn: Turn, generation: Generation) -> None:
    """The trial is passed: to probation, or straight to commit where there is no champion."""
    deployment = turn.state.active()
    if deployment is None or deployment.phase is not Phase.TRIAL:
        serve.end(turn, generation)
        return
    release = turn.wanted(deployment.model)
    champion = turn.state.journal.champions.get(deployment.model)
    pairs = release.probation.labelled_pairs if release is not None else 0
    if champion is None or pairs == 0 or deployment.purpose == "rollback":
        commit(turn, deployment, generation, "passed its trial")
        return
    turn.state.tally = None
    turn.advance(deployment, Phase.PROBATION, labelled_pairs=0, worse=0, better=0)
    turn.say(f"{deployment.model}@{deployment.version}: on probation, {pairs} labelled pairs")
    serve.start_shadow(turn)


def _watch_probation(turn: Turn, deployment: Deployment) -> None:
    state = turn.state
    release = turn.wanted(deployment.model)
    challenger = state.generation("challenger")
    champion = state.generation("serving")
    if release is None or challenger is None:
        return
    if state.journal.crashes.get(deployment.model, 0) >= serve.CRASH_LIMIT:
        commit(turn, deployment, challenger, "the champion cannot serve any more")
        return
    if turn.now.mono >= state.next_tally:
        state.next_tally = turn.now.mono + TALLY_S
        if champion is not None:
            turn.do(AskScores(champion.number, windows=False))
    if turn.now.mono - state.phase_since >= release.probation.deadline_s:
        _judge(turn, deployment, release, challenger)


def on_tally(turn: Turn, tally: Tally) -> None:
    """Take what champion and challenger both answered so far, and judge by it."""
    deployment = turn.state.active()
    if deployment is None or deployment.phase is not Phase.PROBATION:
        return
    if (tally.model, tally.challenger) != (deployment.model, deployment.manifest):
        return
    turn.state.tally = tally
    deployment = replace(
        deployment, labelled_pairs=tally.labelled, worse=tally.worse, better=tally.better
    )
    turn.note(deployment)
    release = turn.wanted(deployment.model)
    challenger = turn.state.generation("challenger")
    if release is not None and challenger is not None:
        _judge(turn, deployment, release, challenger)


def _judge(
    turn: Turn, deployment: Deployment, release: DesiredRelease, challenger: Generation
) -> None:
    tally = turn.state.tally or Tally(deployment.model, deployment.manifest)
    elapsed = turn.now.mono - turn.state.phase_since
    verdict = judge(release.probation, tally, elapsed)
    if verdict is None:
        return
    if verdict.phase is Phase.COMMITTED:
        commit(turn, deployment, challenger, verdict.detail)
    else:
        finish(turn, deployment, verdict.phase, verdict.reason, verdict.detail)


def commit(turn: Turn, deployment: Deployment, generation: Generation, detail: str) -> None:
    """Make the challenger the champion. It is journalled before it answers anybody."""
    state = turn.state
    journal = state.journal
    _stop_shadow(turn, deployment)
    previous = {m: i for m, i in journal.previous.items() if m != deployment.model}
    if deployment.model in journal.champions and deployment.purpose != "rollback":
        # After a rollback there is no way back: it would lead to what was just taken away.
        previous[deployment.model] = journal.champions[deployment.model]
    champions = {**journal.champions, deployment.model: _installed(deployment, turn.now.wall)}
    turn.advance(deployment, Phase.COMMITTED, detail=detail)
    turn.record(
        champions=champions,
        previous=previous,
        pinned=pinned_after(journal, champions, previous, state.settings.pins),
        crashes={m: n for m, n in journal.crashes.items() if m != deployment.model},
    )
    coming = state.generation("next")
    if coming is not None:
        serve.end(turn, coming)
    serve.take_over(turn, generation.number)
    state.engine_failures = 0
    turn.say(f"{deployment.model}@{deployment.version}: committed: {detail}")
    collect(turn)


def on_challenger_failed(
    turn: Turn, generation: Generation, model: str, reason: Reason, detail: str
) -> None:
    """The challenger's engine said why it cannot go on."""
    serve.change(turn, generation.number, role="ending")
    deployment = turn.state.active()
    if deployment is None:
        return
    if deployment.phase is Phase.TRIAL:
        other = f"{model}: " if model and model != deployment.model else ""
        finish(turn, deployment, Phase.FAILED, reason, other + detail)
    elif deployment.phase is Phase.PROBATION:
        finish(turn, deployment, Phase.ROLLED_BACK, reason, detail)


def on_challenger_lost(turn: Turn, why: str) -> None:
    """The challenger's process died: another attempt while there is one, else the end."""
    deployment = turn.state.active()
    if deployment is None:
        return
    if deployment.phase is Phase.PROBATION:
        finish(turn, deployment, Phase.ROLLED_BACK, Reason.CRASHED, f"on probation: {why}")
    elif deployment.phase is Phase.TRIAL:
        ref = f"{deployment.model}@{deployment.version}"
        turn.say(f"{ref}: attempt {deployment.attempts} of {ATTEMPTS}: {why}", "warning")
        turn.advance(deployment, Phase.VERIFIED, detail=f"in its trial: {why}")


# ---- ends


def _stop_shadow(turn: Turn, deployment: Deployment) -> None:
    champion = turn.state.generation("serving")
    if deployment.phase is Phase.PROBATION and champion is not None:
        turn.do(StopShadow(deployment.model, champion.number))


def finish(
    turn: Turn, deployment: Deployment, phase: Phase, reason: Reason | None, detail: str
) -> None:
    """End a deployment otherwise than by commit, and leave nothing of it behind."""
    _stop_shadow(turn, deployment)
    turn.advance(deployment, phase, reason=reason, detail=detail[:480])
    if phase is not Phase.SUPERSEDED:
        turn.refuse(deployment.key)
    if deployment.phase is not Phase.QUEUED:
        # Only one deployment is past the queue, so what is under way is its own.
        drop_download(turn)
        challenger = turn.state.generation("challenger")
        if challenger is not None:
            serve.end(turn, challenger)
    level = "info" if phase is Phase.SUPERSEDED else "warning"
    turn.say(f"{deployment.model}@{deployment.version}: {phase} ({reason}): {detail}", level)
    collect(turn)


def drop_download(turn: Turn) -> None:
    """Stop the transfer under way; what is on disk stays for as long as it may be wanted."""
    download = turn.state.download
    if download is not None:
        source.drop(turn, download)
        turn.do(Unlisten(download.offer.index), CloseTransfer(download.offer.transfer))
        turn.state.download = None
        turn.state.finishing = ""


def recheck_challenger(turn: Turn) -> None:
    """Give up a challenger's engine that still holds a release that was taken back meanwhile."""
    challenger = turn.state.generation("challenger")
    deployment = turn.state.active()
    if challenger is None or deployment is None:
        return
    champions = turn.state.journal.champions
    if any(
        installed.model != deployment.model
        and champions[installed.model].manifest != installed.manifest
        for installed in challenger.models
    ):
        serve.end(turn, challenger)
        turn.advance(deployment, Phase.VERIFIED, detail="another model was taken back meanwhile")


def collect(turn: Turn) -> None:
    """Take out what no champion, no previous or pinned release, and no pending order needs."""
    journal = turn.state.journal
    turn.state.next_collect = turn.now.mono + COLLECT_S
    champions, previous = journal.champions.values(), journal.previous.values()
    files = kept_files((*champions, *previous, *journal.pinned))
    transfers: set[str] = set()
    for deployment in journal.deployments.values():
        if not deployment.phase.final:
            files.update(deployment.files, (deployment.manifest,))
    for release in journal.wanted().values():
        # A newer rollout of the same release goes on with the chunks of the one before.
        if not settled(journal, release):
            files.update(offer.file for offer in release.offers)
            transfers.update(offer.transfer for offer in release.offers)
    keep = frozenset(files | imports.kept(turn))
    heard, turn.state.blobs = turn.state.blobs, turn.state.blobs & keep
    turn.state.manifests = {d: m for d, m in turn.state.manifests.items() if d in keep}
    turn.do(CollectGarbage(keep, frozenset(transfers), heard))
