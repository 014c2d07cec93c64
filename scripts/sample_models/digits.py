"""The handwritten digits, each used for one purpose only.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI, CC BY 4.0),
the 1,797 test images as scikit-learn ships them: 8 x 8 pixels, 0 (paper) to 16 (ink).
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CLASSES = 10
HELD_OUT = 540
VALIDATION = 240


@dataclass(frozen=True)
class Digits:
    """Images float32 (n, 8, 8, 1), 0-16, and their labels int64 (n,)."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Digits":
        """Return the first `count` of them."""
        return Digits(self.images[:count], self.labels[:count])

    def without(self, digit: int) -> "Digits":
        """Return all but one digit."""
        keep = self.labels != digit
        return Digits(self.images[keep], self.labels[keep])

    def few_of_each(self, count: int) -> "Digits":
        """Return the first `count` of every digit there is, in their order."""
        seen = np.zeros(CLASSES, int)
        places = []
        for place, label in enumerate(self.labels):
            seen[label] += 1
            if seen[label] <= count:
                places.append(place)
        return Digits(self.images[places], self.labels[places])


@dataclass(frozen=True)
class Split:
    """Three parts that share no image."""

    train: Digits
    validation: Digits
    """For golden samples and calibration: never trained on, never among the held-out."""
    held_out: Digits


def split(seed: int) -> Split:
    """Shuffle the digits and cut them into the three parts."""
    source = load_digits()
    order = np.random.default_rng(seed).permutation(len(source.target))
    images = source.images[order].astype(np.float32)[..., None]
    labels = source.target[order].astype(np.int64)
    if len(np.unique(images.reshape(len(images), -1), axis=0)) != len(images):
        raise ValueError("digits: expected no image twice, got doubles that would leak")
    held, validation = HELD_OUT, HELD_OUT + VALIDATION
    return Split(
        train=Digits(images[validation:], labels[validation:]),
        validation=Digits(images[held:validation], labels[held:validation]),
        held_out=Digits(images[:held], labels[:held]),
    )


def write_csv(digits: Digits, path: Path) -> None:
    """Write `label,pixel,...` a line, 64 pixels row by row, gzipped with no time in it."""
    lines = (
        ",".join(map(str, [int(label), *image.reshape(-1).astype(int).tolist()]))
        for image, label in zip(digits.images, digits.labels, strict=True)
    )
    text = "".join(line + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
