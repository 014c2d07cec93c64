"""JPEG and PNG to the tensor that a model of pictures takes."""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from agent.engine.runtimes import Array, CannotRunError
from agent.engine.tasks import Frame, Item, Read
from agent.engine.tasks.edges import to_tensor, whole
from agent.engine.tensors import TensorError
from wire.manifest import TensorSpec
from wire.task import ImageInput
from wire.twin import Reason

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG")
MAX_PIXELS = 40_000_000
"""Of one picture: 120 MB while it is decoded."""

MAX_BATCH = 64
MAX_BATCH_BYTES = 64 * 1024 * 1024
"""Of the tensor that a batch becomes."""

_ORIENTATION = 0x0112
"""The tag of EXIF that says how the camera was held."""
_SIDEWAYS = range(5, 9)

_REDUCING_GAP = 3.0
"""Shrink by whole numbers first, down to three times what is wanted: much faster, hardly seen."""


class ImageReader:
    """Decodes, turns upright, resizes and normalises.

    Raises:
        CannotRunError: Pillow is not installed.
    """

    media: tuple[str, ...] = ("image/", "application/octet-stream")

    def __init__(self, given: ImageInput, spec: TensorSpec) -> None:
        try:
            import PIL.Image
            import PIL.ImageOps
            import PIL.JpegImagePlugin
            import PIL.PngImagePlugin
        except ImportError as error:
            raise CannotRunError(
                Reason.NO_RUNTIME,
                "the task takes pictures, and what decodes them is not installed; on the device: "
                f"pip install 'farflung[vision]' ({error})",
            ) from error
        # Our own limit is lower, and counts before anything is decoded.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        self._pil = PIL
        self._filter = PIL.Image.Resampling[given.filter.upper()]
        self.name = given.name
        self._given = given
        self._spec = whole(spec)
        self._size = given.size(spec)
        self._tables = _tables(given, spec)

    def is_quick(self, items: Sequence[Item]) -> bool:
        """Never: a thread costs less than decoding."""
        return False

    def read(self, items: Sequence[Item]) -> Read:
        """Return the pictures as one batch, and where in the input each of them lies."""
        width, height = self._size
        each = width * height * self._given.depth * self._tables.itemsize
        most = min(MAX_BATCH, max(1, MAX_BATCH_BYTES // each))
        if self._spec.shape[0] == 1:
            most = 1
        if not 1 <= len(items) <= most:
            raise TensorError(f"input {self.name}: expected 1 to {most} pictures, got {len(items)}")
        pictures, frames = [], []
        for item in items:
            pixels, frame = self._pixels(item)
            pictures.append(self._values(pixels))
            frames.append(frame)
        return Read([np.stack(pictures)], frames)

    def _pixels(self, item: Item) -> tuple[Array, Frame]:
        """Return a picture's pixels, UINT8 (height, width, channels), and where it lies in them."""
        if not isinstance(item, bytes):
            raise TensorError(f"input {self.name}: expected a JPEG or PNG, got an object")
        try:
            with self._pil.Image.open(io.BytesIO(item), formats=FORMATS) as picture:
                return self._fitted(picture)
        except (TensorError, MemoryError):
            raise
        except Exception as error:
            # A decoder raises anything on what is cut or forged.
            why = "it is neither" if type(error).__name__ == "UnidentifiedImageError" else error
            raise TensorError(
                f"input {self.name}: expected a whole JPEG or PNG, got {len(item)} bytes that "
                f"begin with {item[:8]!r}: {' '.join(str(why).split())[:200]}"
            ) from None

    def _fitted(self, picture: "Image") -> tuple[Array, Frame]:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise TensorError(
                f"input {self.name}: expected a picture of at most {MAX_PIXELS} pixels, got "
                f"{width} x {height}"
            )
        orientation = picture.getexif().get(_ORIENTATION, 1)
        longest = 2 * max(self._size)
        # A JPEG decodes at a half, a quarter or an eighth at a fraction of the time and memory.
        picture.draft(None, (longest, longest))
        if orientation in _SIDEWAYS:
            width, height = height, width
        upright = picture if orientation == 1 else self._pil.ImageOps.exif_transpose(picture)
        return self._resized(self._plain(upright), width, height)

    def _plain(self, picture: "Image") -> "Image":
        if picture.mode.startswith("I"):
            # 16 bits a pixel: the upper eight.
            deep = np.asarray(picture).astype(np.int64) >> 8
            picture = self._pil.Image.fromarray(deep.astype(np.uint8))
        mode = "L" if self._given.channels == "L" else "RGB"
        return picture if picture.mode == mode else picture.convert(mode)

    def _resized(self, picture: "Image", width: int, height: int) -> tuple[Array, Frame]:
        wide, high = self._size
        given = self._given
        if given.resize == "stretch":
            return self._array(self._scaled(picture, (wide, high), None)), Frame(width, height)
        if given.resize == "crop":
            scale = max(wide / width, high / height)
            share = (wide / (width * scale), high / (height * scale))
            left, top = ((1 - part) / 2 for part in share)
            box = (
                left * picture.width,
                top * picture.height,
                (left + share[0]) * picture.width,
                (top + share[1]) * picture.height,
            )
            frame = Frame(
                width, height, -left / share[0], -top / share[1], 1 / share[0], 1 / share[1]
            )
            return self._array(self._scaled(picture, (wide, high), box)), frame
        scale = min(wide / width, high / height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        corner = ((wide - inner[0]) // 2, (high - inner[1]) // 2)
        pixels = np.full((high, wide, given.depth), given.pad, np.uint8)
        rows = slice(corner[1], corner[1] + inner[1])
        columns = slice(corner[0], corner[0] + inner[0])
        pixels[rows, columns] = self._array(self._scaled(picture, inner, None))
        return pixels, Frame(
            width, height, corner[0] / wide, corner[1] / high, inner[0] / wide, inner[1] / high
        )

    def _scaled(
        self, picture: "Image", size: tuple[int, int], box: tuple[float, float, float, float] | None
    ) -> "Image":
        gap = None if self._given.filter == "nearest" else _REDUCING_GAP
        return picture.resize(size, self._filter, box=box, reducing_gap=gap)

    def _array(self, picture: "Image") -> Array:
        pixels: Array = np.asarray(picture)
        if pixels.ndim == 2:
            return pixels[..., None]
        return pixels[..., ::-1] if self._given.channels == "BGR" else pixels

    def _values(self, pixels: Array) -> Array:
        """Return pixels as the tensor's values, in its layout."""
        if len(self._tables) == 1:
            values = self._tables[0][pixels]
        else:
            planes = [table[pixels[..., place]] for place, table in enumerate(self._tables)]
            values = np.stack(planes, axis=-1)
        return values if self._given.layout == "NHWC" else np.ascontiguousarray(
            values.transpose(2, 0, 1)
        )  # fmt: skip


def _tables(given: ImageInput, spec: TensorSpec) -> Array:
    """Return for each channel, or for all as one, what the 256 values of a pixel become."""
    mean, std = np.array(given.mean), np.array(given.std)
    reals = (np.arange(256) * given.scale - mean[:, None]) / std[:, None]
    return to_tensor(reals, spec)
