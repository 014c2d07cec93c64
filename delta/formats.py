"""Where the tensors of a model file lie. Only who encodes needs it; a delta carries the places."""

from dataclasses import dataclass

from delta.errors import DeltaError


class UnreadableModelError(DeltaError):
    """Not a model of this format, or broken; it is then encoded as any file."""


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """The constant data of one tensor."""

    name: str
    place: Place
    element: str
    """As numpy writes it: `i1`, `u1`, `i2`, `u2`, `i4`, `f4`; of other types, `i2` or `i4`."""
    shape: tuple[int, ...]
    axis: int
    """The one that channels lie along."""
    scale: str | None = None
    """Name of the tensor (f4) that holds the scales: one, or one a channel."""
    zero_point: int = 0
    factors: tuple[str, str] | None = None
    """Of which two tensors (f4, the second of one element) this one is likely the product."""
