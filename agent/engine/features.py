"""From samples to the rows of numbers that some models take in their place."""

from typing import Any

import numpy as np

from agent.engine.runtimes import Array, CannotRunError
from wire.stream import Features
from wire.twin import Reason

CHUNK = 160
"""Samples that the front end is given at a time: 10 ms, one row when it has heard enough."""


class Extractor:
    """A front end with its own memory of what it heard: one for each stream.

    Raises:
        CannotRunError: no_runtime, when it is not installed in the version asked for.
    """

    def __init__(self, features: Features) -> None:
        self._front: Any = _open(features)
        self._width = features.width
        self._rest = np.empty(0, np.int16)

    def rows(self, samples: Array) -> Array:
        """Return the rows, FP32 (rows, width), that INT16 samples complete."""
        heard = np.concatenate([self._rest, samples])
        whole = len(heard) - len(heard) % CHUNK
        self._rest = heard[whole:].copy()
        found: list[float] = []
        for at in range(0, whole, CHUNK):
            found += self._front.process_samples(heard[at : at + CHUNK].tobytes()).features
        return np.array(found, np.float32).reshape(-1, self._width)


def _open(features: Features) -> Any:
    from importlib import metadata  # 2 MB, for those alone that listen by features

    name, version = features.extractor, features.version
    try:
        from pymicro_features import MicroFrontend

        found = metadata.version(name)
    except Exception as error:
        raise CannotRunError(
            Reason.NO_RUNTIME, f"{name} {version}: does not import: {error}; pip install {name}"
        ) from error
    wanted = version.split(".")
    if found.split(".")[: len(wanted)] != wanted:
        raise CannotRunError(
            Reason.NO_RUNTIME, f"{name}: expected version {version} as the release, got {found}"
        )
    return MicroFrontend()
