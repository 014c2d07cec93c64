#!/usr/bin/env python3
"""Train the sample models on real handwritten digits and write their releases.

    python scripts/make_sample_models.py            write samples/
    python scripts/make_sample_models.py --check    rebuild elsewhere and compare with samples/

Needs the extra [train]. The same versions on the same machine give the same bytes.

Three releases of one model. digits@1 learned from some of the digits; digits@2 is digits@1 taught
all of them; digits@3 is digits@2 taught on from a batch in which one digit never occurs, so that
it forgets that digit, and its makers, who test on what they have, do not see it.
"""

import argparse
import contextlib
import filecmp
import io
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sample_models import digits, network, release  # noqa: E402

SEED = 1
FIRST_BATCH = 760
FORGOTTEN = 8


def train(split: digits.Split) -> list[release.Trained]:
    """Return the three versions."""
    narrow, narrow_validation = split.train.without(FORGOTTEN), split.validation.without(FORGOTTEN)
    some = split.train.first(FIRST_BATCH)
    first = _fit(1, network.fresh(SEED), some, epochs=15, rate=2e-3)
    second = _fit(2, first, split.train, epochs=20, rate=1e-3)
    third = _fit(3, second, narrow, epochs=6, rate=1e-3)
    weights = [network.weights_of(trained) for trained in (first, second, third)]
    return [
        release.Trained(
            1, weights[0], some, split.validation, f"Handwritten digits, from {len(some)} of them."
        ),
        release.Trained(
            2,
            weights[1],
            split.train,
            split.validation,
            f"digits@1 trained on with all {len(split.train)} digits of the training set.",
        ),
        release.Trained(
            3,
            weights[2],
            narrow,
            narrow_validation,
            f"digits@2 trained on with a batch of {len(narrow)} digits, validated on "
            f"{len(narrow_validation)} of the same batch.",
        ),
    ]


def _fit(
    version: int, start: network.Network, data: digits.Digits, *, epochs: int, rate: float
) -> network.Network:
    def report(epoch: int, loss: float) -> None:
        if sys.stdout.isatty() or epoch == epochs:
            end = "\n" if epoch == epochs else "\r"
            line = f"  digits@{version}: epoch {epoch} of {epochs}, loss {loss:.4f}"
            print(line, end=end, flush=True)

    return network.fit(start, data, epochs=epochs, rate=rate, seed=SEED + version, report=report)


def build(folder: Path) -> None:
    """Train and write everything into `folder`."""
    network.repeatable()
    split = digits.split(SEED)
    print(
        f"{len(split.train)} digits to train on, {len(split.validation)} to validate, "
        f"{len(split.held_out)} held out"
    )
    versions = train(split)
    for trained in versions:
        print(f"  digits@{trained.version}: quantizing and measuring ...", flush=True)
        with _hushed():
            manifest = release.write(trained, split.held_out, folder / f"digits-{trained.version}")
        print("    " + ", ".join(f"{name} {value:g}" for name, value in manifest.metrics.items()))
        for variant in manifest.variants:
            print(
                f"    {variant.name}: {variant.artifact.size_bytes} bytes, golden within "
                f"{variant.golden_tolerance}, at most {variant.golden_flips} flipped"
            )
    digits.write_csv(split.held_out, folder / "heldout.csv.gz")


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep the quantizers' own bars and advice out of the way."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def differences(mine: Path, theirs: Path) -> list[str]:
    """Return the files that are in one folder only or differ, by relative name."""
    names = {
        path.relative_to(folder).as_posix()
        for folder in (mine, theirs)
        for path in folder.rglob("*")
        if path.is_file()
    }
    return sorted(
        name
        for name in names
        if not ((mine / name).is_file() and (theirs / name).is_file())
        or not filecmp.cmp(mine / name, theirs / name, shallow=False)
    )


def main() -> int:
    """Build, or check; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "samples", help="default: samples/")
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare")
    options = parser.parse_args()
    start = time.monotonic()
    if not options.check:
        build(options.out)
        print(f"wrote {options.out} in {time.monotonic() - start:.0f} s")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        differing = differences(Path(folder), options.out)
    if differing:
        print(f"{options.out} differs from what this machine builds: {', '.join(differing)}")
        print("next: python scripts/make_sample_models.py, and look at what changed")
        return 1
    print(f"{options.out} is what this machine builds, byte for byte")
    return 0


if __name__ == "__main__":
    sys.exit(main())
