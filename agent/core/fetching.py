"""Fetches the files of the active deployment: when it may, from whom, and when it gives up."""

import math
from dataclasses import replace

from agent.core import ends, source
from agent.core.actions import (
    CloseTransfer,
    FinishTransfer,
    Listen,
    OpenTransfer,
    PublishFetch,
    Unlisten,
    WriteChunk,
    WriteIndex,
)
from agent.core.download import CATCH_UP_S, ChunkVerified, Download, FrameRejected, IndexVerified
from agent.core.manners import Wait, rate, turn_after, wait_before_all, wait_before_files
from agent.core.offers import chosen
from agent.core.state import AgentState, Deployment, Instant
from agent.core.turn import Turn
from wire.transfer import ChunkFrame, FetchRequest
from wire.twin import DesiredRelease, Phase, Reason

LAG_S = 2.0
HOLD_AFTER_S = 1.0
LAG_BYTES = 24 * 1024 * 1024
"""More than a leader asks for before it steps back, and less than brokers hold for a reader."""


def missing_of(turn: Turn, files: tuple[str, ...]) -> list[str]:
    """Return which of `files` are not on the disk."""
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


def may_fetch(turn: Turn, deployment: Deployment, wait: Wait | None) -> bool:
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


def fetch(turn: Turn, deployment: Deployment, release: DesiredRelease, digest: str) -> None:
    """Open the transfer of one file, or ask for more of it, or see that it came to a halt."""
    state = turn.state
    if state.finishing:
        return
    download = state.download
    if download is None:
        offer = chosen(state, release, digest)
        if offer is None:
            detail = f"expected an offer for {digest[:19]}, got none"
            ends.finish(turn, deployment, Phase.REJECTED, Reason.BAD_MANIFEST, detail)
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
        ends.finish(turn, deployment, Phase.TIMED_OUT, Reason.NO_PROGRESS, detail)
        return
    if not download.own:
        _keep_up(turn, download)
        if download.would_lead(turn.now.mono) and _behind(turn):
            download.follow_on(turn.now.mono)
    for request in download.requests_due(turn.now.mono):
        turn.do(PublishFetch(request))


def lags(turn: Turn, most: int, since_s: float = LAG_S) -> bool:
    """Return whether the broker has so much in store for us that our report waits behind it.

    `most`: bytes that may come before that report is acknowledged. Others ask faster than this
    device can hear.
    """
    state, download = turn.state, turn.state.download
    if download is None or state.report_owed_at is None:
        return False
    behind = download.heard_bytes - state.report_owed_bytes
    owed = turn.now.mono - state.report_owed_at
    return owed > since_s and behind > most


def _behind(turn: Turn) -> bool:
    """Return whether frames may still be on their way that others asked for."""
    owed_at = turn.state.report_owed_at
    return owed_at is not None and turn.now.mono - owed_at < CATCH_UP_S


def _keep_up(turn: Turn, download: Download) -> None:
    """See to it that the broker does not hold back ever more for this device."""
    if download.catching_up:
        if turn.now.mono >= download.caught_up_by:
            _rejoin(turn, download)
    elif download.overdrawn:
        leave(turn)
    elif lags(turn, LAG_BYTES):
        # What is on its way is not asked for again; what passes meanwhile, others may lack too.
        download.catch_up()
        turn.do(Listen(download.offer.index, own=True))  # and what is on its way
        turn.state.report_owed_at = None
        turn.state.report_wanted = True
        turn.say(f"{download.offer.transfer[:19]}: too fast for this line, catching up")
    elif lags(turn, download.window_bytes, HOLD_AFTER_S) and download.hold(turn.now.mono):
        turn.do(PublishFetch(FetchRequest.to_hold(download.offer.index)))


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
        ends.finish(turn, deployment, Phase.FAILED, reason, detail)


def on_stored(turn: Turn, file: str) -> None:
    """Count a file as present."""
    turn.state.blobs = turn.state.blobs | {file}
    if turn.state.finishing == file:
        turn.state.finishing = ""
        turn.state.download = None
    else:
        ends.collect(turn)  # it was given up meanwhile


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
        ends.finish(turn, deployment, Phase.FAILED, reason, detail)
