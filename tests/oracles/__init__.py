"""Other people's statistics, to compare ours with, on the same data."""

import json
import subprocess
from pathlib import Path
from typing import Any

_PYTHON = Path(__file__).parents[2] / ".cache" / "oracles" / "bin" / "python"
_ASK = Path(__file__).with_name("ask.py")


def ask(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what the oracles say of each case, by the name of the case."""
    assert _PYTHON.exists(), f"expected the oracles in {_PYTHON.parents[1]}; run: scripts/test"
    done = subprocess.run(
        [_PYTHON, "-I", "-W", "ignore", _ASK],
        check=False, input=json.dumps(cases), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"the oracles failed:\n{done.stderr[-3000:]}"
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answers
