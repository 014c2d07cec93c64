"""How few bytes an update takes: against zstd, xdelta3 and bsdiff4, on trained pairs."""

import hashlib
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np
import zstandard

from delta.encode import encode, pairs_of
from scripts.benches._common import Bar, CannotMeasureError, Result, main, need, note

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
TRAINING = [
    Path(__file__).with_name("_train_pairs.py"),
    *sorted((ROOT / "scripts/sample_models").glob("*.py")),
]
BSDIFF4 = "bsdiff4==1.3.2"
FORMS = ("onnx", "tflite")
FINE_TUNES = (
    "adamw-1e-6", "adamw-1e-5", "adamw-3e-5", "adamw-1e-4", "adamw-3e-4", "adamw-1e-3",
    "sgd-1e-2", "head-only",
)  # fmt: skip
OTHERS = ("requantized", "retrained", "unrelated")
QUICK = (
    ("onnx", "adamw-1e-6"),
    ("onnx", "adamw-1e-4"),
    ("tflite", "adamw-1e-4"),
    ("tflite", "adamw-1e-3"),
    ("tflite", "requantized"),
)
BARS = [
    Bar("geomean_ratio", at_most=0.75),
    Bar("worst_ratio", at_most=1.0),
    Bar("ratio_at_1e4", at_most=0.45),
    Bar("worst_ratio_to_zstd19", at_most=1.01),
]
DECODE = """
import re, sys
from delta.__main__ import main
code = main()
# Of this program alone: what wait4 tells counts the pages of who forked it, too.
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(code)
"""
YARDSTICKS = ("zstd19", "zstd_patch_from", "xdelta3", "bsdiff4")


def measure(quick: bool) -> Result:
    """Measure the bytes of updates: fine-tunes at many rates, and pairs with little in common."""
    need("zstd", "zstd")
    need("xdelta3", "xdelta3")
    python = _train_python()
    models = _models(python)
    pairs = []
    for form, name, base, new in _pairs(models, quick):
        pairs.append(_pair(python, f"{form} {name}", base, new, 1 if quick else 5))
        note(_line(pairs[-1]))
    tuned = {
        pair["name"]: pair["ours"] / min(pair[other] for other in YARDSTICKS)
        for pair in pairs
        if pair["name"].split()[1] in FINE_TUNES
    }
    return Result(
        {
            "geomean_ratio": geometric_mean(tuned.values()),
            "worst_ratio": max(tuned.values()),
            "ratio_at_1e4": geometric_mean(
                [ratio for name, ratio in tuned.items() if name.endswith("adamw-1e-4")]
            ),
            "worst_ratio_to_zstd19": max(pair["ours"] / pair["zstd19"] for pair in pairs),
            "pairs": pairs,
        },
        {"ratios": tuned},
    )


def _pairs(models: Path, quick: bool) -> Iterator[tuple[str, str, Path, Path]]:
    wanted = QUICK if quick else [(form, name) for form in FORMS for name in FINE_TUNES + OTHERS]
    for form, name in wanted:
        base, new = models / f"base.{form}", models / f"{name}.{form}"
        if name == "unrelated":
            base, new = ROOT / f"samples/digits-1/digits-int8.{form}", base
        yield form, name, base, new


def _pair(python: Path, name: str, base: Path, new: Path, repeats: int) -> dict[str, Any]:
    """Measure one pair; sizes in bytes."""
    old, content = base.read_bytes(), new.read_bytes()
    started = time.perf_counter()
    # What the controller sends: the delta, or zstd where that is as small.
    made = encode(old, content)
    encode_s = time.perf_counter() - started
    plain = len(zstandard.ZstdCompressor(level=19).compress(content))
    found: dict[str, Any] = {"name": name, "ours": plain if made is None else len(made)}
    with tempfile.TemporaryDirectory(prefix="bench-update-") as folder:
        found |= _others(python, base, new, Path(folder) / "patch")
        decodes = [] if made is None else [
            _decode(base, made, content, Path(folder)) for _ in range(repeats)
        ]  # fmt: skip
    return found | {
        "entropy": round(_entropy_bytes(old, content)),
        "encode_s": round(encode_s, 2),
        "decode_s": round(median(each[0] for each in decodes), 3) if decodes else 0.0,
        "decode_peak_mb": round(max(each[1] for each in decodes), 1) if decodes else 0.0,
    }


def _others(python: Path, base: Path, new: Path, patch: Path) -> dict[str, int]:
    """Return what the yardsticks make of a pair."""
    bsdiff = "import bsdiff4, sys; bsdiff4.file_diff(*sys.argv[1:])"
    commands: dict[str, list[str | Path]] = {
        "zstd19": ["zstd", "-19", "-q", "-f", new, "-o", patch],
        "zstd_patch_from": [
            "zstd", "-19", "--long=27", f"--patch-from={base}", "-q", "-f", new, "-o", patch,
        ],
        "xdelta3": ["xdelta3", "-9", "-S", "lzma", "-e", "-f", "-s", base, new, patch],
        "bsdiff4": [python, "-c", bsdiff, base, new, patch],
    }  # fmt: skip
    sizes = {}
    for name, command in commands.items():
        _run(command)
        sizes[name] = patch.stat().st_size
    return sizes


def _decode(base: Path, delta: bytes, expected: bytes, folder: Path) -> tuple[float, float]:
    """Decode as a device does, in a process of its own; return its seconds and peak MB."""
    patch, out = folder / "delta", folder / "out"
    patch.write_bytes(delta)
    options = ["--base", base, "--delta", patch, "--out", out, "--max-bytes", str(len(expected))]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", DECODE, "decode", *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    spent = time.perf_counter() - started
    if done.returncode != 0 or out.read_bytes() != expected:
        raise AssertionError(f"{base.name}: not decoded to the new file: {done.stderr}")
    return spent, int(done.stdout) / 1024


def _entropy_bytes(base: bytes, new: bytes) -> float:
    """Return the order-0 entropy of new minus old bytes, tensor by tensor of those that changed."""
    total = 0.0
    for old, now in pairs_of(base, new):
        if old is None:
            continue
        before = np.frombuffer(base, np.uint8, old.place.length, old.place.offset)
        after = np.frombuffer(new, np.uint8, now.place.length, now.place.offset)
        counts = np.bincount(after - before, minlength=256)
        shares = counts[counts > 0] / counts.sum()
        total -= float(counts.sum() * (shares * np.log2(shares)).sum()) / 8
    return total


def _line(pair: dict[str, Any]) -> str:
    best = min(YARDSTICKS, key=lambda name: int(pair[name]))
    return (
        f"{pair['name']:20} {pair['ours']:>9,} B, {pair['ours'] / pair[best]:.3f} of {best}"
        f" ({', '.join(f'{name} {pair[name]:,}' for name in YARDSTICKS)});"
        f" entropy {pair['entropy']:,}; encoded in {pair['encode_s']} s,"
        f" decoded in {pair['decode_s']} s and {pair['decode_peak_mb']} MB"
    )


def _train_python() -> Path:
    """Return the Python of an environment that can train, and that holds bsdiff4."""
    folder = CACHE / "bench-train"
    python = folder / "bin/python"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = "\n".join([*project["optional-dependencies"]["train"], BSDIFF4, sys.version])
    stamp = folder / ".stamp"
    if not stamp.exists() or stamp.read_text() != wanted:
        note("installing farflung[train] and bsdiff4 into .cache/bench-train; this takes minutes")
        _run([sys.executable, "-m", "venv", folder])
        _run([python, "-m", "pip", "install", "-q", "-e", f"{ROOT}[train]", BSDIFF4])
        stamp.write_text(wanted)
    return python


def _models(python: Path) -> Path:
    """Return the folder with the trained models."""
    told = hashlib.sha256(b"".join(path.read_bytes() for path in TRAINING)).hexdigest()
    folder = CACHE / f"update-bytes-{told[:12]}"
    if not folder.exists():
        note("training the models; this takes a few minutes, once")
        _run([python, TRAINING[0], folder])
    return folder


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CannotMeasureError(f"{command[0]} exited with {done.returncode}: {last}")


if __name__ == "__main__":
    sys.exit(main("update-bytes", BARS, measure))
