"""The libraries that some tasks need beside a runtime, and whether they do their work here."""

import importlib.metadata
import importlib.util
import io

PICTURES = "Pillow"
FEATURES = "pymicro-features"

MODULES = {PICTURES: "PIL", FEATURES: "pymicro_features"}
"""Distribution -> the module it is imported as."""


def installed() -> list[str]:
    """Return those that are here, by distribution name; whether they work is another matter."""
    return [name for name, module in MODULES.items() if importlib.util.find_spec(module)]


def try_out(name: str) -> str:
    """Return the version of a library after it did what tasks want of it.

    Raises:
        Exception: whatever went wrong.
    """
    if name == PICTURES:
        _decode()
    else:
        _hear()
    return importlib.metadata.version(name)


def _decode() -> None:
    from PIL import Image

    for format in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (250, 250, 250)).save(file, format)
        with Image.open(file, formats=[format]) as picture:
            picture.load()


def _hear() -> None:
    from pymicro_features import MicroFrontend

    front = MicroFrontend()
    rows = [front.process_samples(bytes(320)).features for _ in range(10)]
    if not any(rows):
        raise ValueError("100 ms of silence: expected features, got none")
