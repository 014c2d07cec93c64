"""What apps may send in place of tensors, and what they get in place of scores.

A reader turns pictures, texts or rows into a model's inputs; a teller turns its outputs into
labels or boxes. Both do what the release's manifest declares and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from agent.engine.runtimes import Array
from wire.manifest import Datatype, TensorSpec

Item = bytes | dict[str, Any]
"""One picture, text or row as an app sent it; a row may be an object already."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where in the model's input a picture lies; shares of the input's width and height."""

    width: int
    """Of the picture as sent, upright, in pixels."""
    height: int
    left: float = 0.0
    top: float = 0.0
    wide: float = 1.0
    high: float = 1.0

    def on_picture(self, places: Array) -> Array:
        """Return places (..., 2) as x and y in pixels of the picture, from shares of the input."""
        shares = (places - (self.left, self.top)) / (self.wide, self.high)
        pixels: Array = shares * (self.width, self.height)
        return pixels


@dataclass(frozen=True, slots=True)
class Read:
    """What items became."""

    inputs: list[Array]
    """In the manifest's order."""
    frames: list[Frame] = field(default_factory=list)
    """One a picture; none for what is no picture."""


@dataclass(frozen=True, slots=True)
class Told:
    """An answer, in two forms."""

    tensors: list[Array]
    """One for each of the teller's outputs."""
    rows: list[dict[str, Any]]
    """One object an item."""


class Reader(Protocol):
    """Turns what apps send into a model's inputs. Safe to use from several threads."""

    name: str
    """What apps call it in a request."""
    media: tuple[str, ...]
    """Beginnings of the content types of a body that is one item."""

    def is_quick(self, items: Sequence[Item]) -> bool:
        """Whether reading takes well under a millisecond."""
        ...

    def read(self, items: Sequence[Item]) -> Read:
        """Return the inputs for a batch of items.

        Raises:
            TensorError: an item is not what the task takes.
        """
        ...


class Teller(Protocol):
    """Turns a model's outputs into what apps want to know."""

    outputs: tuple[TensorSpec, ...]
    """The tensors of an answer."""

    def tell(self, outputs: list[Array], frames: list[Frame]) -> Told:
        """Return the answer.

        Raises:
            AnswerError: the outputs are not finite.
        """
        ...


def output(name: str, datatype: Datatype, *shape: int) -> TensorSpec:
    """Return the description of one tensor of an answer; -1: any size."""
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def texts(values: Sequence[str]) -> Array:
    """Return a tensor of BYTES (n)."""
    array: Array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array
