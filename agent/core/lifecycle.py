"""The phases of a deployment: which may follow which, and how long each may last."""

from dataclasses import replace
from typing import Any

from agent.core.state import Deployment
from wire.twin import Phase

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.PREFLIGHT, Phase.SUPERSEDED}),
    Phase.PREFLIGHT: frozenset(
        {Phase.FETCHING, Phase.REJECTED, Phase.FAILED, Phase.TIMED_OUT, Phase.SUPERSEDED}
    ),
    Phase.FETCHING: frozenset({Phase.VERIFIED, Phase.FAILED, Phase.TIMED_OUT, Phase.SUPERSEDED}),
    Phase.VERIFIED: frozenset({Phase.TRIAL, Phase.FAILED, Phase.SUPERSEDED}),
    # Back to verified: an attempt was lost to a crash or a restart, and another one is left.
    Phase.TRIAL: frozenset(
        {Phase.PROBATION, Phase.COMMITTED, Phase.FAILED, Phase.VERIFIED, Phase.SUPERSEDED}
    ),
    Phase.PROBATION: frozenset(
        {Phase.COMMITTED, Phase.ROLLED_BACK, Phase.TIMED_OUT, Phase.VERIFIED, Phase.SUPERSEDED}
    ),
    Phase.COMMITTED: frozenset(),
    Phase.REJECTED: frozenset(),
    Phase.FAILED: frozenset(),
    Phase.TIMED_OUT: frozenset(),
    Phase.ROLLED_BACK: frozenset(),
    Phase.SUPERSEDED: frozenset(),
}
"""Where each phase may go. A deployment begins queued, except for two that never fetch: one that
finds its release already serving, and a fallback, begin committed: both served before."""

ATTEMPTS = 3
"""Engine starts that one deployment gets; a crash or an unclean restart costs one."""

TRIAL_DEADLINE_S = 900.0
"""Beyond the engine's own start time-out, so that a lost answer cannot park a deployment."""


class Misuse(Exception):  # noqa: N818
    """Our own bug: the code asked for what the design forbids."""


def move(deployment: Deployment, to: Phase, since: float, **changes: Any) -> Deployment:
    """Return the deployment in its next phase.

    Raises:
        Misuse: `TRANSITIONS` has no such arrow.
    """
    if to not in TRANSITIONS[deployment.phase]:
        raise Misuse(f"{deployment.model}: no way from {deployment.phase} to {to}")
    return replace(deployment, phase=to, since=since, **changes)
