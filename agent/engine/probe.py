"""Which runtimes work here: each is made to run a model, in a process of its own."""

import base64
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from agent.engine.runtimes import MODULES, installed, open_with

TIMEOUT_S = 60

# Both return x + x for x: FP32 (2,).
_ONNX_ADDER = (
    "CAg6OQoOCgF4CgF4EgF5IgNBZGQSBWFkZGVyWg8KAXgSCgoICAESBAoCCAJiDwoBeRIKCggIARIECgIIAkIECgAQDQ=="
)
_TFLITE_ADDER = (
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAYAAAA4AAAAAMAAAABAAAABAAAACj///8BAAAAEAAAAAwAFAAQ"
    "AAwACAAEAAwAAAAQAAAAUAAAAFQAAABYAAAAAQAAABQAAAAAAA4AFAAAABAADAALAAQADgAAABAAAAAAAAALDAAAABAA"
    "AACA////AQAAAAEAAAACAAAAAAAAAAAAAAABAAAAAQAAAAEAAAAAAAAAAgAAADAAAAAEAAAA5P///wgAAAAMAAAAAQAA"
    "AHkAAAABAAAAAgAAAAwADAAIAAAAAAAEAAwAAAAIAAAADAAAAAEAAAB4AAAAAQAAAAIAAAABAAAACAAAAAQABAAEAAAA"
)


def probe() -> dict[str, dict[str, str]]:
    """Return {"runtimes": {name: version}, "unusable": {name: why}} of what is installed.

    One process a runtime: a library built for another NumPy or processor may take its process
    along, and the others shall still be found.
    """
    children = {
        name: subprocess.Popen(
            [sys.executable, "-m", "agent.engine", "--probe-runtime", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name in installed()
    }
    usable, unusable = {}, {}
    for name, child in children.items():
        version, why = _outcome(child)
        if why:
            unusable[name] = why
        else:
            usable[name] = version
    return {"runtimes": usable, "unusable": unusable}


def _outcome(child: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        out, _ = child.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return "", f"did not run a two-element model within {TIMEOUT_S} s"
    if child.returncode < 0:
        return "", f"its process ended by {signal.Signals(-child.returncode).name}"
    try:
        answer = json.loads(out.splitlines()[-1])
        return answer["version"], answer["why"]
    except (IndexError, KeyError, ValueError):
        return "", f"its process ended with code {child.returncode} and without an answer"


def probe_runtime(name: str) -> dict[str, str]:
    """Run the embedded model with one runtime; `why` is empty when the answer was right."""
    import numpy as np

    if name not in MODULES:
        return {"version": "", "why": f"expected one of {', '.join(MODULES)}, got {name[:40]!r}"}
    data = base64.b64decode(_ONNX_ADDER if name == "onnxruntime" else _TFLITE_ADDER)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adder"
            path.write_bytes(data)
            runtime = open_with(name, str(path), threads=1)
            (answer,) = runtime.run([np.array([1.5, -2.0], np.float32)])
    except Exception as error:
        return {"version": "", "why": f"{_first_cause(error)} (with NumPy {np.__version__})"}
    if answer.tolist() != [3.0, -4.0]:
        return {"version": "", "why": f"1.5 + 1.5 and -2 + -2: got {answer.tolist()}"}
    return {"version": runtime.version, "why": ""}


def _first_cause(error: BaseException) -> str:
    """Return what went wrong first: a library hides it behind what went wrong because of it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split())[:300] or type(error).__name__
