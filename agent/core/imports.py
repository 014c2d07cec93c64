"""Releases that came in a bundle: how long their files stay, and the orders that came with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.core.actions import ForgetImport, KeepOrder
from wire.twin import DesiredRelease

if TYPE_CHECKING:
    from agent.core.turn import Turn

KEPT_S = 30 * 86_400.0
"""How long files wait for somebody to ask for their release."""

MAX_IMPORTS = 16


@dataclass(frozen=True, slots=True)
class Imported:
    """A release whose files lie in their slots, although nobody may have asked for it yet."""

    model: str
    version: int
    manifest: str
    files: tuple[str, ...]
    """Digests of all its files, the manifest's own among them."""
    since: float
    """Unix seconds."""
    order: DesiredRelease | None = None
    """An order to take the release that is not in the journal yet."""


def take(turn: Turn, found: tuple[Imported, ...]) -> None:
    """Know what was imported, and follow the orders among it."""
    state = turn.state
    state.imports = {each.model: each for each in found}
    for each in state.imports.values():
        if each.order is not None:
            local = {**state.journal.local, each.model: each.order}
            turn.record(local=local)
            turn.do(KeepOrder(each.model))
            turn.say(f"{each.order.ref}: to be installed as its bundle says ({each.order.rollout})")


def kept(turn: Turn) -> set[str]:
    """Return the files that wait for a Desired, and forget imports that are done or too old."""
    state = turn.state
    latest = sorted(state.imports.values(), key=lambda each: each.since)[-MAX_IMPORTS:]
    champions = {champion.manifest for champion in state.journal.champions.values()}
    waiting = {
        each.model: each
        for each in latest
        if turn.now.wall - each.since < KEPT_S and each.manifest not in champions
    }
    for model in state.imports:
        if model not in waiting:
            turn.do(ForgetImport(model))
    state.imports = waiting
    return {file for each in waiting.values() for file in each.files}
