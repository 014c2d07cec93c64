"""python -m delta decode --base PATH --delta PATH --out PATH --max-bytes N

Writes to OUT what the delta makes of the base, and exits 0. Otherwise says why not in one line,
leaves no OUT behind, and exits 1. Takes no more memory than `delta.decode` says it needs.
"""

import argparse
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

_INTERPRETER_BYTES = 160 << 20
"""Python, numpy and zstd before they do anything."""

_WORKING_BYTES = 16 << 20

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m delta", description="Make a file out of another one and a delta."
    )
    decoding = parser.add_subparsers(required=True).add_parser("decode")
    for name in ("--base", "--delta", "--out"):
        decoding.add_argument(name, type=Path, required=True)
    decoding.add_argument("--max-bytes", type=int, required=True, help="largest result allowed")
    options = parser.parse_args()
    _end_with_parent()
    try:
        _decode(options.base, options.delta, options.out, options.max_bytes)
    except (OSError, ValueError) as error:
        return _fail(options.out, str(error))
    except MemoryError:
        return _fail(options.out, "more memory wanted than base and result account for")
    return 0


def _decode(base: Path, delta: Path, out: Path, max_bytes: int) -> None:
    sizes = base.stat().st_size, delta.stat().st_size
    _limit_memory(4 * (sizes[0] + max_bytes) + sizes[1] + _WORKING_BYTES + _INTERPRETER_BYTES)
    # One thread: the products are small, and every thread of OpenBLAS takes memory of its own.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from delta.decode import decode

    made = decode(base.read_bytes(), delta.read_bytes(), max_bytes)
    with out.open("wb") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())


def _end_with_parent() -> None:
    """Be ended when the agent is: nobody would wait for the file any more. Linux only."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _fail(out: Path, reason: str) -> int:
    out.unlink(missing_ok=True)
    sys.stderr.write(f"decode: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
