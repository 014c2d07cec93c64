"""One step in the making: the state being changed and the actions collected."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agent.core.actions import Action, Enqueue, SaveJournal, Say
from agent.core.lifecycle import move
from agent.core.state import AgentState, Deployment, Installed, Instant, Key
from wire.telemetry import DeviceEvent, EventKind
from wire.twin import DesiredRelease, Phase

REFUSALS_REMEMBERED = 64


@dataclass(slots=True)
class Turn:
    """Deciders change `state` by replacing fields, and append what should be done."""

    state: AgentState
    now: Instant
    actions: list[Action] = field(default_factory=list)
    _journalled: bool = False

    @classmethod
    def of(cls, state: AgentState, now: Instant) -> "Turn":
        """Begin a turn on a copy of `state`."""
        return cls(copy.copy(state), now)

    def do(self, *actions: Action) -> None:
        """Append actions."""
        self.actions.extend(actions)

    def say(self, text: str, level: str = "info") -> None:
        """Append a line for the log."""
        self.do(Say(text, level))

    def tell(
        self,
        kind: EventKind,
        text: str,
        *,
        of: Installed | Deployment | None = None,
        model: str | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Queue something that happened, for the controller, in order with windows and health."""
        settings = self.state.settings
        self.state.sequence += 1
        event = DeviceEvent(
            device=settings.device,
            boot=settings.boot,
            seq=self.state.sequence,
            at=max(int(self.now.wall), 0),
            kind=kind,
            model=of.model if of is not None else model,
            version=of.version if of is not None else None,
            text=text[:300],
            counts=dict(counts or {}),
        )
        self.do(Enqueue(event))

    def record(self, **changes: Any) -> None:
        """Change the journal. It is written before anything else this turn asks for."""
        self.state.journal = replace(self.state.journal, **changes)
        self._journalled = True

    def put(self, deployment: Deployment) -> None:
        """Record a deployment in its new phase and have it reported."""
        self.record(deployments={**self.state.journal.deployments, deployment.model: deployment})
        self.state.phase_since = self.now.mono
        self.state.waiting = False
        self.state.report_wanted = True
        if deployment.phase.final:
            self.tell_end(deployment)

    def tell_end(self, deployment: Deployment) -> None:
        """Queue that a deployment is over, and how."""
        words = [f"{deployment.model}@{deployment.version}", deployment.phase.value]
        words += [each for each in (deployment.reason, deployment.detail) if each]
        self.tell("deployment", ": ".join(words), of=deployment)

    def advance(self, deployment: Deployment, to: Phase, **changes: Any) -> Deployment:
        """Move a deployment to its next phase and record that."""
        moved = move(deployment, to, self.now.wall, **changes)
        self.put(moved)
        return moved

    def refuse(self, key: Key) -> None:
        """Remember that this deployment is not to be tried again."""
        refused = (*(k for k in self.state.journal.refused if k != key), key)
        self.record(refused=refused[-REFUSALS_REMEMBERED:])

    def note(self, deployment: Deployment) -> None:
        """Keep figures that moved within a phase, for reports alone: no flash write for them."""
        deployments = {**self.state.journal.deployments, deployment.model: deployment}
        self.state.journal = replace(self.state.journal, deployments=deployments)
        self.state.progress_wanted = True

    def wanted(self, model: str) -> DesiredRelease | None:
        """Return what is desired of a model."""
        return self.state.journal.wanted().get(model)

    def result(self) -> tuple[AgentState, list[Action]]:
        """Return the new state, and the actions with the journal first if it changed."""
        first: list[Action] = [SaveJournal(self.state.journal)] if self._journalled else []
        return self.state, first + self.actions
