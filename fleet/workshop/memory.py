"""How much memory one run of a model takes, told from its tensors."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)

COPIES_OF_WEIGHTS = 2
"""Runtimes keep weights as the file has them, and once more in the order their kernels like."""


@dataclass(frozen=True, slots=True)
class Step(Generic[Name]):
    """One operator of a graph: the tensors it reads and those it makes."""

    inputs: Sequence[Name]
    outputs: Sequence[Name]


def peak_bytes(weights_bytes: int, alive_bytes: int) -> int:
    """Return an estimate of what a model takes beyond an engine that holds none."""
    return COPIES_OF_WEIGHTS * weights_bytes + alive_bytes


def most_alive(
    steps: Sequence[Step[Name]],
    sizes: Mapping[Name, int],
    inputs: Iterable[Name],
    outputs: Iterable[Name],
) -> int:
    """Return the most bytes of tensors that are needed at one time, steps taken in their order.

    A tensor is alive from the step that makes it to the last that reads it, inputs from the
    start, outputs to the end. What has no size in `sizes` counts nothing.
    """
    last = {name: place for place, step in enumerate(steps) for name in step.inputs}
    last |= dict.fromkeys(outputs, len(steps))
    alive = set(inputs)
    now = most = sum(sizes.get(name, 0) for name in alive)
    for place, step in enumerate(steps):
        for name in set(step.outputs) - alive:
            alive.add(name)
            now += sizes.get(name, 0)
        most = max(most, now)
        for name in {*step.inputs, *step.outputs} & alive:
            if last.get(name, place) <= place:
                alive.remove(name)
                now -= sizes.get(name, 0)
    return most
