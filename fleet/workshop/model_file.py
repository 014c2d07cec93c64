"""What one model file says about itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wire.manifest import Format, Requires, TensorSpec

MAX_MODEL_BYTES = 2**31 - 1
"""What protobuf and FlatBuffers can address."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model, complete and read to its end."""

    format: Format
    requires: Requires
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probabilities: frozenset[str]
    """Outputs that come out of an operator whose answers sum to one."""
    precision: str
    """Element type that most of the weights have, such as int8 or float32."""


def precision_of(elements: Mapping[str, int]) -> str:
    """Return the element type with the most weights; float32 for a model without any."""
    return max(elements, key=lambda name: elements[name], default="float32")


def listed(specs: Iterable[TensorSpec]) -> str:
    """Return tensors for an error message: `image FP32[-1, 8, 8, 1]`."""
    return ", ".join(f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in specs)
