"""Keeps the champions answering: generations of engines, crashes, and the way back."""

from dataclasses import replace

from agent.control import Loaded, ModelSpec
from agent.core import memory
from agent.core.actions import (
    DrainEngine,
    KillEngine,
    ServeEngine,
    StartEngine,
    StartShadow,
)
from agent.core.jitter import draw
from agent.core.reconcile import key_of
from agent.core.retention import pinned_after
from agent.core.state import AgentState, Deployment, Generation, Installed, Role
from agent.core.turn import Turn
from wire.twin import Phase, Reason

CRASH_LIMIT = 3
"""Crashes of a champion, without a stable run between, after which the previous one returns."""

STABLE_S = 600.0
FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 60.0


def launch(turn: Turn, models: tuple[Installed, ...], role: Role) -> int:
    """Start a generation and return its number."""
    state = turn.state
    number = state.last_generation + 1
    state.last_generation = number
    generation = Generation(number, models, role, turn.now.mono)
    state.generations = {**state.generations, number: generation}
    challenger = role == "challenger"
    if role == "next":
        state.restart_at = None
    turn.do(
        StartEngine(
            number,
            tuple(_spec(installed) for installed in models),
            golden=challenger,
            background=state.generation("serving") is not None,
            memory_bytes=memory.left_for_trial(state) if challenger else 0,
        )
    )
    return number


def _spec(installed: Installed) -> ModelSpec:
    """Name the files by digest; the shell knows where they lie."""
    return ModelSpec(
        model=installed.model,
        version=installed.version,
        manifest=installed.manifest,
        variant=installed.variant,
        manifest_path="",
        files=dict.fromkeys(installed.files, ""),
    )


def change(turn: Turn, number: int, **changes: object) -> Generation:
    """Replace fields of a generation."""
    generation = replace(turn.state.generations[number], **changes)  # type: ignore[arg-type]
    turn.state.generations = {**turn.state.generations, number: generation}
    return generation


def ensure_serving(turn: Turn) -> None:
    """Start an engine for the champions when none serves, none is coming, and it is time."""
    state = turn.state
    if not state.journal.champions or state.stopping:
        return
    if state.generation("next") is not None:
        return
    if state.generation("serving") is not None:
        if state.restart_wanted:
            _renew(turn)
        return
    if state.making_way and _way_is_taken(state):
        return
    state.making_way, state.restart_wanted = "", False
    if state.restart_at is not None and turn.now.mono < state.restart_at:
        return
    launch(turn, tuple(state.journal.champions.values()), "next")


def restart(turn: Turn) -> None:
    """Have a fresh engine take over: beside the serving one, or after it where memory is short."""
    turn.state.restart_wanted = turn.state.generation("next") is None


def _renew(turn: Turn) -> None:
    champions = tuple(turn.state.journal.champions.values())
    lacking = memory.lacking_beside(turn, champions)
    if lacking is None:
        return
    turn.state.restart_wanted = False
    if lacking:
        make_way(turn, "restart", lacking)
    else:
        launch(turn, champions, "next")


def make_way(turn: Turn, whom: str, why: str) -> None:
    """Let the serving engine end before another one starts, for a release digest or "restart"."""
    serving = turn.state.generation("serving")
    if serving is None:
        return
    turn.state.making_way = whom
    change(turn, serving.number, role="ending")
    turn.do(DrainEngine(serving.number))
    turn.say(f"engine {serving.number} ends before the next one starts: {why}", "warning")


def _way_is_taken(state: AgentState) -> bool:
    """Whether the champions must wait: their engine is still there, or a trial in its place."""
    if any(generation.role == "ending" for generation in state.generations.values()):
        return True
    deployment = state.active()
    if deployment is None or deployment.manifest != state.making_way:
        return False
    return deployment.phase in (Phase.VERIFIED, Phase.TRIAL)


def take_over(turn: Turn, number: int) -> None:
    """Let a ready generation serve, and the one before it drain."""
    old = turn.state.generation("serving")
    change(turn, number, role="serving")
    turn.do(ServeEngine(number))
    if old is not None:
        change(turn, old.number, role="ending")
        turn.do(DrainEngine(old.number, streams=True))
    turn.state.restart_at = None
    turn.state.making_way = ""
    turn.state.settled_at = turn.now.mono + STABLE_S
    turn.state.report_wanted = True


def end(turn: Turn, generation: Generation) -> None:
    """End a generation that serves nobody."""
    change(turn, generation.number, role="ending")
    turn.do(KillEngine(generation.number))


def on_ready(turn: Turn, number: int, models: tuple[Loaded, ...]) -> Generation | None:
    """Note that a generation is ready; let it serve if that is what it was started for."""
    if number not in turn.state.generations:
        return None
    generation = change(
        turn,
        number,
        ready=True,
        runtimes={loaded.model: loaded.runtime for loaded in models},
        fallbacks={loaded.model: loaded.fallback for loaded in models if loaded.fallback},
    )
    if generation.role == "next":
        take_over(turn, number)
        start_shadow(turn)
    return generation


def start_shadow(turn: Turn) -> None:
    """Let the champion copy inputs to the challenger, if there is a probation and both are up."""
    deployment = turn.state.active()
    champion = turn.state.generation("serving")
    challenger = turn.state.generation("challenger")
    if deployment is None or deployment.phase is not Phase.PROBATION:
        return
    if champion is not None and challenger is not None and challenger.ready:
        turn.do(
            StartShadow(deployment.model, champion.number, challenger.number, deployment.manifest)
        )


def on_lost(
    turn: Turn,
    generation: Generation,
    blamed: str,
    why: str,
    reason: Reason = Reason.CRASHED,
) -> None:
    """Take the loss of a serving or coming engine: blame, back off, or go back a release."""
    state = turn.state
    state.engine_restarts += 1
    if generation.role == "next" and state.generation("serving") is not None:
        turn.say(f"engine {generation.number} did not come up ({why}); the old one stays", "error")
        return
    state.engine_failures += 1
    state.settled_at = None
    if _count_crash(turn, _culprit(generation, blamed), generation, why, reason):
        return
    if state.generation("next") is not None:
        return  # a successor is on its way already
    wait = min(FIRST_BACKOFF_S * 2 ** (state.engine_failures - 1), LAST_BACKOFF_S)
    wait *= 0.75 + 0.5 * draw(state.settings.boot, state.engine_restarts)
    state.restart_at = turn.now.mono + wait


def on_hung(turn: Turn, generation: Generation, blamed: str, why: str) -> None:
    """Count a run that had to be stopped like a crash, although its engine goes on."""
    if turn.state.settled_at is not None:
        turn.state.settled_at = turn.now.mono + STABLE_S
    if _count_crash(turn, _culprit(generation, blamed), generation, why, Reason.HUNG):
        restart(turn)


def _count_crash(turn: Turn, model: str, generation: Generation, why: str, reason: Reason) -> bool:
    """Blame `model`; return whether that was once too often and its previous release is back."""
    state = turn.state
    state.report_wanted = True
    crashes = state.journal.crashes.get(model, 0) + 1
    turn.record(crashes={**state.journal.crashes, model: crashes})
    text = f"{model}: engine {generation.number}: {why}; crash {crashes}"
    turn.say(text, "error")
    if crashes <= CRASH_LIMIT or crashes & (crashes - 1) == 0:  # a loop of them fills no outbox
        turn.tell("crash", text, of=state.journal.champions.get(model), model=model)
    if crashes < CRASH_LIMIT or model not in state.journal.previous:
        return False
    _fall_back(turn, model, why, reason)
    coming = state.generation("next")
    if coming is not None:
        end(turn, coming)  # it holds what was just taken back
    return True


def _culprit(generation: Generation, blamed: str) -> str:
    """Return the model to blame: the one being run, or else the newest comer."""
    if any(installed.model == blamed for installed in generation.models):
        return blamed
    return max(generation.models, key=lambda installed: installed.since).model


def _fall_back(turn: Turn, model: str, why: str, reason: Reason) -> None:
    """Return to the previous release. That is a deployment of its own, and already done."""
    journal = turn.state.journal
    bad, good = journal.champions[model], journal.previous[model]
    fallback = Deployment(
        model=model,
        version=good.version,
        manifest=good.manifest,
        rollout=bad.rollout,
        purpose="fallback",
        phase=Phase.COMMITTED,
        since=turn.now.wall,
        variant=good.variant,
        files=good.files,
        reason=reason,
        detail=f"{model}@{bad.version} crashed {CRASH_LIMIT} times after its commit: {why}",
    )
    # A deployment under way was started against the bad champion: it stays and goes on.
    latest = journal.deployments.get(model)
    deployments = dict(journal.deployments)
    if latest is None or latest.phase.final:
        deployments[model] = fallback
    turn.tell_end(fallback)
    champions = {**journal.champions, model: good}
    previous = {m: i for m, i in journal.previous.items() if m != model}
    turn.record(
        champions=champions,
        previous=previous,
        pinned=pinned_after(journal, champions, previous, turn.state.settings.pins),
        crashes={m: n for m, n in journal.crashes.items() if m != model},
        deployments=deployments,
    )
    turn.refuse((bad.rollout, "rollout", bad.manifest))
    wanted = turn.wanted(model)
    if wanted is not None and wanted.manifest == bad.manifest:
        # A later rollout that found it serving already would bring it here once more.
        turn.refuse(key_of(wanted))
    turn.say(f"{model}: back to {model}@{good.version}: {fallback.detail}", "error")


def forget_crashes(turn: Turn) -> None:
    """After a long stable run, earlier crashes no longer count."""
    state = turn.state
    if state.settled_at is not None and turn.now.mono >= state.settled_at:
        state.settled_at = None
        state.engine_failures = 0
        if state.journal.crashes:
            turn.record(crashes={})
