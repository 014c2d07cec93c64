"""How a deployment ends otherwise than by commit, and what goes with it."""

from agent.core import imports, serve, source
from agent.core.actions import CloseTransfer, CollectGarbage, StopShadow, Unlisten
from agent.core.reconcile import settled
from agent.core.retention import kept_files
from agent.core.state import Deployment
from agent.core.turn import Turn
from wire.twin import Phase, Reason

COLLECT_S = 86_400.0
"""How often garbage is taken out even if nothing happens."""


def stop_shadow(turn: Turn, deployment: Deployment) -> None:
    """End the copying of live inputs, if the deployment is on probation."""
    champion = turn.state.generation("serving")
    if deployment.phase is Phase.PROBATION and champion is not None:
        turn.do(StopShadow(deployment.model, champion.number))


def finish(
    turn: Turn, deployment: Deployment, phase: Phase, reason: Reason | None, detail: str
) -> None:
    """End a deployment otherwise than by commit, and leave nothing of it behind."""
    stop_shadow(turn, deployment)
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
