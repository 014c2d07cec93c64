"""Moves the active deployment on: to preflight, fetching, trial, probation and commit."""

from dataclasses import replace

from agent.control import Tally
from agent.core import ends, fetching, imports, memory, preflight, serve
from agent.core.actions import AskScores
from agent.core.lifecycle import ATTEMPTS, TRIAL_DEADLINE_S
from agent.core.manners import wait_before_files
from agent.core.probation import finding, finding_unlabelled, judge
from agent.core.reconcile import Adopt, Begin, Supersede, reconcile
from agent.core.retention import pinned_after
from agent.core.state import Deployment, Generation, Installed
from agent.core.turn import Turn
from wire.twin import DesiredRelease, Finding, Phase, Reason

TALLY_S = 1.0


def converge(turn: Turn) -> None:
    """Begin, adopt or give up deployments until desired and actual agree."""
    for wish in reconcile(turn.state.journal):
        match wish:
            case Supersede(model):
                deployment = turn.state.journal.deployments[model]
                ends.finish(
                    turn, deployment, Phase.SUPERSEDED, Reason.WITHDRAWN, "no longer desired"
                )
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
            fetching.take_turn(turn, release)
            turn.advance(deployment, Phase.PREFLIGHT)
        case Phase.PREFLIGHT:
            preflight.preflight(turn, deployment, release)
        case Phase.FETCHING:
            missing = fetching.missing_of(turn, deployment.files)
            if not missing:
                _fetched(turn, deployment, release)
            elif fetching.may_fetch(
                turn, deployment, wait_before_files(turn.state, release, turn.now)
            ):
                fetching.fetch(turn, deployment, release, missing[0])
        case Phase.VERIFIED:
            _try(turn, deployment)
        case Phase.TRIAL:
            if turn.now.mono - turn.state.phase_since >= TRIAL_DEADLINE_S:
                ends.finish(turn, deployment, Phase.FAILED, Reason.HUNG, "the trial never answered")
        case Phase.PROBATION:
            _watch_probation(turn, deployment)


def _fetched(turn: Turn, deployment: Deployment, release: DesiredRelease) -> None:
    """Go on with everything on the disk, hashed and synced; say how long it took."""
    taken = turn.now.mono - turn.state.phase_since
    turn.advance(deployment, Phase.VERIFIED)
    sizes = {offer.file: offer.file_bytes for offer in release.offers}
    size = sum(sizes.get(digest, 0) for digest in deployment.files)
    turn.say(f"{release.ref}: fetched {size} bytes in {taken:.3f} s")


def on_imports(turn: Turn, found: tuple[imports.Imported, ...], blobs: frozenset[str]) -> None:
    """Count the files of bundles as present; one of them need not be fetched any further."""
    state = turn.state
    state.blobs |= blobs
    if state.download is not None and not state.finishing and state.download.offer.file in blobs:
        ends.drop_download(turn)
    imports.take(turn, found)
    ends.collect(turn)


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
    if state.making_way not in ("", deployment.manifest):
        return  # the champions come first
    if deployment.attempts >= ATTEMPTS:
        detail = deployment.detail or f"{ATTEMPTS} attempts ended without an answer"
        ends.finish(turn, deployment, Phase.FAILED, Reason.CRASHED, detail)
        return
    missing = fetching.missing_of(turn, deployment.files)
    if missing:
        detail = f"{missing[0][:19]} vanished from its slot"
        ends.finish(turn, deployment, Phase.FAILED, Reason.IO_ERROR, detail)
        return
    challenger = _installed(deployment, turn.now.wall)
    others = tuple(i for m, i in state.journal.champions.items() if m != deployment.model)
    lacking = memory.lacking_beside(turn, (*others, challenger))
    if lacking is None:
        return
    if lacking:
        if _may_skip_probation(turn, deployment):
            serve.make_way(turn, deployment.manifest, lacking)
        else:
            detail = f"{lacking}: no probation is possible beside the champion"
            ends.finish(turn, deployment, Phase.FAILED, Reason.OUT_OF_MEMORY, detail)
        return
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
    pairs = release.probation.labelled_pairs if release is not None else 0
    if not _wants_probation(turn, deployment):
        commit(turn, deployment, generation, "passed its trial")
        return
    if turn.state.making_way:
        detail = "passed its trial; memory is too short for a probation beside the champion"
        commit(turn, deployment, generation, detail)
        return
    turn.state.tally = None
    turn.advance(deployment, Phase.PROBATION, labelled_pairs=0, worse=0, better=0)
    turn.say(f"{deployment.model}@{deployment.version}: on probation, {pairs} labelled pairs")
    serve.start_shadow(turn)


def _wants_probation(turn: Turn, deployment: Deployment) -> bool:
    release = turn.wanted(deployment.model)
    pairs = release.probation.labelled_pairs if release is not None else 0
    served = deployment.model in turn.state.journal.champions
    return served and pairs > 0 and deployment.purpose != "rollback"


def _may_skip_probation(turn: Turn, deployment: Deployment) -> bool:
    """Whether a release may commit on its trial alone where evidence cannot be had."""
    release = turn.wanted(deployment.model)
    lenient = release is not None and release.probation.at_deadline == "commit"
    return lenient or not _wants_probation(turn, deployment)


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
        # Before it is judged, so that whether there is a finding does not hang on the verdict.
        deployment = _freeze(turn, deployment, finding(release.probation, tally))
        _judge(turn, deployment, release, challenger)


def _freeze(turn: Turn, deployment: Deployment, found: Finding | None) -> Deployment:
    """Keep the finding for good, unless there is one already."""
    if found is None or deployment.finding is not None:
        return deployment
    deployment = replace(deployment, finding=found)
    turn.record(deployments={**turn.state.journal.deployments, deployment.model: deployment})
    turn.state.report_wanted = True
    return deployment


def _judge(
    turn: Turn, deployment: Deployment, release: DesiredRelease, challenger: Generation
) -> None:
    tally = turn.state.tally or Tally(deployment.model, deployment.manifest)
    elapsed = turn.now.mono - turn.state.phase_since
    verdict = judge(release.probation, tally, elapsed)
    if verdict is None:
        return
    if verdict.phase is Phase.COMMITTED:
        if verdict.unlabelled:
            found = finding_unlabelled(release.probation, tally)
            deployment = _freeze(turn, deployment, found)
        commit(turn, deployment, challenger, verdict.detail)
    else:
        ends.finish(turn, deployment, verdict.phase, verdict.reason, verdict.detail)


def commit(turn: Turn, deployment: Deployment, generation: Generation, detail: str) -> None:
    """Make the challenger the champion. It is journalled before it answers anybody."""
    state = turn.state
    journal = state.journal
    ends.stop_shadow(turn, deployment)
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
    ends.collect(turn)


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
        ends.finish(turn, deployment, Phase.FAILED, reason, other + detail)
    elif deployment.phase is Phase.PROBATION:
        ends.finish(turn, deployment, Phase.ROLLED_BACK, reason, detail)


def on_challenger_hung(turn: Turn, why: str) -> None:
    """A run of the challenger had to be stopped. In a trial its engine says so itself."""
    deployment = turn.state.active()
    if deployment is not None and deployment.phase is Phase.PROBATION:
        ends.finish(turn, deployment, Phase.ROLLED_BACK, Reason.HUNG, f"on probation: {why}")


def on_challenger_lost(turn: Turn, why: str) -> None:
    """The challenger's process died: another attempt while there is one, else the end."""
    turn.state.making_way = ""  # before another attempt the champions answer for a while
    deployment = turn.state.active()
    if deployment is None:
        return
    if deployment.phase is Phase.PROBATION:
        ends.finish(turn, deployment, Phase.ROLLED_BACK, Reason.CRASHED, f"on probation: {why}")
    elif deployment.phase is Phase.TRIAL:
        ref = f"{deployment.model}@{deployment.version}"
        turn.say(f"{ref}: attempt {deployment.attempts} of {ATTEMPTS}: {why}", "warning")
        turn.advance(deployment, Phase.VERIFIED, detail=f"in its trial: {why}")


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
