"""Deltas that are cut, mutilated or meant to harm end with one error, in bounded memory."""

import os
import struct
import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import load_from_string

from delta.container import MAGIC, Delta, pack
from delta.decode import decode
from delta.encode import encode
from delta.errors import DeltaError
from delta.spans import Predictor, Scales, Span
from tests.delta.models import layer, onnx_of, quantized, tuned

LIMIT = 200_000


@cache
def pair() -> tuple[bytes, bytes, bytes]:
    """A base, a new file and the delta, with a low-rank part and classes of columns."""
    before = layer(1, 64, 256) * np.linspace(0.2, 4, 256)
    files = [
        onnx_of(w=values, w_scale=scales)
        for values, scales in (quantized(before), quantized(tuned(before, 2, 0.004)))
    ]
    delta = encode(*files)
    assert delta is not None
    return files[0], files[1], delta


def attempt(base: bytes, delta: bytes, limit: int = LIMIT) -> bytes | None:
    """Return what comes out; an error of ours is an answer, any other one is a bug."""
    try:
        made = decode(base, delta, limit)
    except DeltaError:
        return None
    assert len(made) <= limit
    return bytes(made)


def test_a_delta_cut_anywhere_is_refused():
    base, new, delta = pair()

    for length in [*range(0, 200), *range(200, len(delta), 97), len(delta) - 1]:
        assert attempt(base, delta[:length]) in (None, new), length


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4
    ),
    early=st.booleans(),
)
def test_a_mutilated_delta_ends_in_an_error_or_in_other_bytes(changes, early):
    base, _, delta = pair()
    broken = bytearray(delta)
    for at, value in changes:
        broken[at % (120 if early else len(broken))] = value

    attempt(base, bytes(broken))


@settings(max_examples=200, deadline=None)
@given(tail=st.binary(max_size=400))
def test_bytes_that_only_begin_like_a_delta_are_refused(tail):
    attempt(b"base" * 50, MAGIC + tail)


def test_a_delta_for_another_base_does_no_harm():
    base, new, delta = pair()

    assert attempt(base[: len(base) // 2], delta) != new
    assert attempt(base[::-1], delta) != new
    assert attempt(b"", delta) is None


def test_a_result_larger_than_allowed_is_refused_before_it_is_made():
    base, new, delta = pair()

    with pytest.raises(DeltaError, match="expected 0 to"):
        decode(base, delta, len(new) - 1)


def spans(*changes: dict[str, object]) -> bytes:
    """Return a delta with a table of these spans and no weights."""
    sane = {
        "element": "i1", "predictor": Predictor.SAME, "new": 0, "base": 0,
        "outer": 1, "rows": 8, "inner": 8,
    }  # fmt: skip
    made = tuple(Span(**(sane | change)) for change in changes)
    rest = zstandard.ZstdCompressor().compress(b"")
    return pack(Delta(1000, made, 16, struct.pack("<16I", *[1 << 16] * 16), b"", rest))


@pytest.mark.parametrize(
    "change",
    [
        {"new": -1},
        {"new": 937},
        {"base": 937},
        {"base": -5},
        {"rows": 1 << 40},
        {"rows": 1 << 61, "inner": 1 << 61},
        {"scales": Scales(0, 0, 8, 0, 0)},
        {"predictor": Predictor.RESCALED},
        {"predictor": Predictor.RESCALED, "scales": Scales(0, 0, 7, 0, 0)},
        {"predictor": Predictor.RESCALED, "scales": Scales(0, 0, 0, 0, 0)},
        {"predictor": Predictor.RESCALED, "scales": Scales(990, 0, 8, 0, 0)},
        {"predictor": Predictor.RESCALED, "scales": Scales(0, 990, 8, 0, 0)},
        {"predictor": Predictor.RESCALED, "scales": Scales(0, 0, 8, 1 << 40, 0)},
        {"predictor": Predictor.PRODUCT, "factors": (0, 0)},
        {"predictor": Predictor.PRODUCT, "element": "f4", "rows": 1, "factors": (990, 0)},
        {"exponents": (3,) * 200},
        {"exponents": (99,)},
    ],
    ids=str,
)
def test_a_span_that_reads_or_writes_outside_is_refused(change):
    with pytest.raises(DeltaError):
        decode(bytes(1000), spans(change), 1000)


def test_spans_that_overlap_are_refused():
    with pytest.raises(DeltaError, match="overlap"):
        decode(bytes(1000), spans({}, {"new": 32}), 1000)


def test_a_bomb_between_the_tensors_is_refused_before_it_is_inflated():
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    delta = pack(Delta(1000, (), 16, struct.pack("<16I", *[1 << 16] * 16), b"", bomb))

    tracemalloc.start()
    with pytest.raises(DeltaError, match="at most 1000"):
        decode(b"", delta, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 5_000_000


def float_files() -> list[bytes]:
    before = layer(1, 3, 300_000)
    return [onnx_of(w=array.astype(np.float32)) for array in (before, tuned(before, 2, 1e-4))]


def transposed_files() -> list[bytes]:
    """Files whose channels lie along the last axis."""
    before = layer(1, 512, 1024)
    files = []
    for values, scales in (quantized(before), quantized(tuned(before, 2, 0.001))):
        model = load_from_string(onnx_of(w=values.T.copy(), w_scale=scales))
        model.graph.node[0].attribute[0].i = 1
        files.append(model.SerializeToString(deterministic=True))
    return files


@pytest.mark.parametrize("files", [float_files, transposed_files])
def test_decoding_stays_within_the_memory_it_promises(files):
    base, new = files()
    delta = encode(base, new)
    assert delta is not None

    tracemalloc.start()
    made = decode(base, delta, len(new))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert made == new
    # The base and the delta were there before.
    assert peak < 3 * len(base) + 4 * len(new) + (16 << 20)


def child(folder: Path, base: bytes, delta: bytes, limit: int) -> subprocess.CompletedProcess[str]:
    (folder / "base").write_bytes(base)
    (folder / "delta").write_bytes(delta)
    return subprocess.run(
        [
            sys.executable, "-m", "delta", "decode", "--base", folder / "base", "--delta",
            folder / "delta", "--out", folder / "out", "--max-bytes", str(limit),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_child_process_writes_the_new_file(tmp_path):
    base, new, delta = pair()

    done = child(tmp_path, base, delta, len(new))

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out").read_bytes() == new


@pytest.mark.parametrize("length", [0, 3, 40, 2000])
def test_the_child_process_says_in_one_line_why_not(tmp_path, length):
    base, new, delta = pair()

    done = child(tmp_path, base, delta[:length], len(new))

    assert done.returncode == 1
    assert done.stderr.startswith("decode: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_child_process_names_a_base_that_vanished(tmp_path):
    _, new, delta = pair()
    (tmp_path / "delta").write_bytes(delta)

    done = subprocess.run(
        [
            sys.executable, "-m", "delta", "decode", "--base", tmp_path / "gone", "--delta",
            tmp_path / "delta", "--out", tmp_path / "out", "--max-bytes", str(len(new)),
        ],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ,
    )  # fmt: skip

    assert done.returncode == 1
    assert "gone" in done.stderr and done.stderr.count("\n") == 1
