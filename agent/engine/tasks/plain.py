"""Outputs without classes: real numbers, whatever the graph's own types are."""

from agent.engine.runtimes import Array
from agent.engine.tasks import Frame, Told, output
from agent.engine.tasks.edges import to_reals
from wire.manifest import TensorSpec


class PlainTeller:
    """Gives every output as it is, quantized ones as FP32."""

    def __init__(self, outputs: list[TensorSpec]) -> None:
        self._specs = outputs
        self.outputs = tuple(
            spec if spec.quantization is None else output(spec.name, "FP32", *spec.shape)
            for spec in outputs
        )

    def tell(self, outputs: list[Array], frames: list[Frame]) -> Told:
        """Return the outputs; as one object, whatever the batch."""
        tensors = [
            array if spec.quantization is None else to_reals(array, spec)
            for spec, array in zip(self._specs, outputs, strict=True)
        ]
        names = [spec.name for spec in self._specs]
        listed = {name: array.tolist() for name, array in zip(names, tensors, strict=True)}
        return Told(tensors, [{"outputs": listed}])
