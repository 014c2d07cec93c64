"""Outputs without classes: real numbers, whatever the graph's own types are."""

from agent.engine.runtimes import Array
from agent.engine.tasks import Frame, Told
from agent.engine.tasks.edges import to_reals
from wire.manifest import TensorSpec


class PlainTeller:
    """Gives every output as it is, dequantized."""

    def __init__(self, outputs: list[TensorSpec]) -> None:
        self._specs = outputs

    def tell(self, outputs: list[Array], frames: list[Frame]) -> Told:
        """Return the outputs; quantized ones as FP32."""
        tensors = {}
        for spec, array in zip(self._specs, outputs, strict=True):
            real = spec.quantization is not None and array.dtype.kind in "iu"
            tensors[spec.name] = ("FP32", to_reals(array, spec)) if real else (spec.datatype, array)
        listed = {name: array.tolist() for name, (_, array) in tensors.items()}
        return Told(tensors, [{"outputs": listed}])

    def shapes(self) -> dict[str, tuple[str, list[int]]]:
        """Return the outputs' own."""
        return {
            spec.name: (
                spec.datatype if spec.quantization is None else "FP32", list(spec.shape)
            )
            for spec in self._specs
        }  # fmt: skip
