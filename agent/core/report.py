"""The device's retained word about itself."""

from agent.core.offers import all_chosen
from agent.core.state import AgentState, Deployment
from wire.twin import DeploymentReport, Phase, Reported, Serving


def report(state: AgentState) -> Reported:
    """Return what this device runs, as of now."""
    journal, settings = state.journal, state.settings
    engine = state.generation("serving")
    # After a way back an engine may serve for a moment what is the champion no more.
    held = {installed.manifest for installed in engine.models} if engine is not None else set()
    runtimes = engine.runtimes if engine is not None else {}
    fallbacks = engine.fallbacks if engine is not None else {}
    return Reported(
        device=settings.device,
        desired_revision=journal.desired.revision if journal.desired is not None else 0,
        agent=settings.version,
        boot=settings.boot,
        sequence=state.reports,
        labels=settings.labels,
        capabilities=state.capabilities,
        serving=tuple(
            Serving(
                model=champion.model,
                version=champion.version,
                manifest=champion.manifest,
                variant=champion.variant,
                runtime=runtimes.get(champion.model, "") if champion.manifest in held else "",
                since=champion.since,
                fallback=fallbacks.get(champion.model) if champion.manifest in held else None,
            )
            for champion in journal.champions.values()
        ),
        deployments=tuple(_deployment(state, d) for d in journal.deployments.values()),
        api=settings.api,
        refusals=state.refusals,
    )


def _deployment(state: AgentState, deployment: Deployment) -> DeploymentReport:
    done, total = _progress(state, deployment)
    waiting = state.waiting and deployment == state.active()
    moving = deployment.phase is Phase.FETCHING and not waiting
    return DeploymentReport(
        model=deployment.model,
        version=deployment.version,
        rollout=deployment.rollout,
        purpose=deployment.purpose,
        manifest=deployment.manifest,
        phase=deployment.phase,
        since=int(deployment.since),
        reason=deployment.reason,
        detail=deployment.detail,
        variant=deployment.variant or None,
        bytes_done=done,
        bytes_total=total,
        bytes_per_s=int(state.speed) if moving else 0,
        waiting=waiting,
        labelled_pairs=deployment.labelled_pairs,
        worse=deployment.worse,
        better=deployment.better,
        finding=deployment.finding,
    )


def _progress(state: AgentState, deployment: Deployment) -> tuple[int, int]:
    """Return bytes on disk and bytes to fetch of the artifacts, while fetching."""
    if deployment.phase is not Phase.FETCHING:
        return 0, 0
    release = state.journal.wanted().get(deployment.model)
    wanted = all_chosen(state, release, deployment.files) if release is not None else []
    done = sum(offer.transfer_bytes for offer in wanted if offer.file in state.blobs)
    if state.download is not None:
        done += state.download.done_bytes
    return done, sum(offer.transfer_bytes for offer in wanted)
