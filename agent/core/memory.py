"""Whether a second engine fits into memory beside the serving one.

Where it does, the new one comes up beside the old one, which drains once the new one serves.
Where it does not, the old one drains first; apps wait at the listening sockets, which the daemon
holds open, until the new one answers.
"""

from agent.core.actions import MeasureMemory
from agent.core.state import AgentState, Installed
from agent.core.turn import Turn

MEBIBYTE = 1024 * 1024


def lacking_beside(turn: Turn, models: tuple[Installed, ...]) -> str | None:
    """Return why an engine with these models does not fit beside the serving one.

    Empty: it does, or none serves. None: that is being measured, and the answer comes at once.

    A like engine is assumed to take what the serving one takes by itself. Models that are larger
    add the difference, and the largest file counts once more: runtimes hold a file and what
    they make of it while they load.
    """
    state = turn.state
    serving = state.generation("serving")
    if serving is None:
        return ""
    measured = state.memory
    if measured is None:
        turn.do(MeasureMemory())
        return None
    sizes = measured.sizes
    new = [sizes.get(file, 0) for installed in models for file in installed.files]
    old = [sizes.get(file, 0) for installed in serving.models for file in installed.files]
    grown = max(sum(new) - sum(old), 0)
    needed = measured.engines.get(serving.number, 0) + grown + max(new, default=0)
    free = measured.available_bytes - state.settings.memory_reserve_bytes
    if needed <= free:
        return ""
    reserve = state.settings.memory_reserve_bytes
    return (
        f"a second engine needs about {needed // MEBIBYTE} MiB of memory, "
        f"{measured.available_bytes // MEBIBYTE} MiB are available and "
        f"{reserve // MEBIBYTE} MiB of them reserved"
    )


def left_for_trial(state: AgentState) -> int:
    """Return what a challenger may take before the champion suffers; 0: there is none."""
    if state.memory is None or state.generation("serving") is None:
        return 0
    return max(state.memory.available_bytes - state.settings.memory_reserve_bytes, MEBIBYTE)
