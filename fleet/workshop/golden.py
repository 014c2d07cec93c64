"""Checks golden samples: what a device feeds a model before it trusts it."""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet.workshop.errors import ArtifactError
from wire.manifest import Datatype, TensorSpec

MAX_GOLDEN_BYTES = 64 * 1024 * 1024
"""Unpacked: a device holds them all in memory."""

LABEL = "label"

_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, NotImplementedError,
    MemoryError, OSError,
)  # fmt: skip
"""What numpy and zipfile raise for a file that is cut, forged or something else."""

_KINDS: dict[Datatype, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}

Arrays = dict[str, NDArray[np.generic]]


def read_golden(
    path: Path, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], classes: int | None
) -> Arrays:
    """Return the arrays of a golden file: `input_0`..., `output_0`... and maybe `label`.

    Raises:
        ArtifactError: not an .npz, arrays missing or too many, or types and shapes that are not
            the model's.
    """
    arrays = load_arrays(path, MAX_GOLDEN_BYTES, "golden samples", "keep fewer golden samples")
    specs = {f"input_{place}": spec for place, spec in enumerate(inputs)}
    specs |= {f"output_{place}": spec for place, spec in enumerate(outputs)}
    if set(arrays) - {LABEL} != set(specs):
        raise ArtifactError(
            f"{path.name}: expected the arrays {', '.join(specs)} and perhaps {LABEL}, got "
            f"{', '.join(sorted(arrays)) or 'none'}; save them with numpy.savez_compressed"
        )
    samples = arrays["input_0"].shape[:1]
    if samples in ((), (0,)):
        raise ArtifactError(f"{path.name}: input_0: expected at least one sample, got none")
    for name, spec in specs.items():
        _check_array(path, name, arrays[name], spec, samples[0])
    if LABEL in arrays:
        _check_labels(path, arrays[LABEL], samples[0], classes)
    return arrays


def load_arrays(path: Path, limit: int, what: str, else_do: str) -> Arrays:
    """Return the arrays of an .npz by name.

    Raises:
        ArtifactError: not one, or larger than `limit` unpacked; the message says `else_do`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > limit:
            raise ArtifactError(
                f"{path.name}: expected at most {limit} bytes unpacked, got {size}; {else_do}"
            )
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except _UNREADABLE as error:
        raise ArtifactError(
            f"{path.name}: expected {what} as .npz without objects, got {error}; "
            "save them with numpy.savez_compressed"
        ) from error


def _check_array(
    path: Path, name: str, array: NDArray[np.generic], spec: TensorSpec, samples: int
) -> None:
    kind = _KINDS.get(spec.datatype)
    if kind is None:
        raise ArtifactError(
            f"{path.name}: {name}: expected numbers, got text as {spec.name!r} takes it; push the "
            "model without golden samples"
        )
    if array.dtype != np.dtype(kind):
        raise ArtifactError(
            f"{path.name}: {name}: expected {kind} as {spec.name!r} has, got {array.dtype}; "
            "convert the array"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ArtifactError(
            f"{path.name}: {name}: expected finite numbers, got NaN or infinity; leave such "
            "samples out"
        )
    # A batch of one or of any size gives way to the samples; other tensors are whole samples.
    wanted = (samples, *(spec.shape[1:] if spec.shape[:1] in ((1,), (-1,)) else spec.shape))
    if len(array.shape) != len(wanted) or any(
        size not in (-1, got) for size, got in zip(wanted, array.shape, strict=True)
    ):
        raise ArtifactError(
            f"{path.name}: {name}: expected shape {_shape(wanted)} (-1: any) as {spec.name!r} has, "
            f"got {_shape(array.shape)}; one sample a row"
        )


def _shape(sizes: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, sizes))})"


def _check_labels(
    path: Path, labels: NDArray[np.generic], samples: int, classes: int | None
) -> None:
    if labels.dtype != np.int64 or labels.shape != (samples,):
        raise ArtifactError(
            f"{path.name}: {LABEL}: expected int64 of shape ({samples}), got {labels.dtype} of "
            f"shape {_shape(labels.shape)}; one class number a sample"
        )
    numbers = labels.astype(np.int64)
    if classes is not None and not 0 <= numbers.min() <= numbers.max() < classes:
        raise ArtifactError(
            f"{path.name}: {LABEL}: expected classes 0 to {classes - 1}, got {numbers.min()} to "
            f"{numbers.max()}; number them as in the labels file"
        )
