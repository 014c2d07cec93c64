"""Which runtimes and accelerators work here: each runs a model, in a process of its own."""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agent.engine import libraries
from agent.engine.runtimes import MODULES, PREFERENCE, installed, open_with
from agent.engine.runtimes.accelerators import VARIABLE, Kind, configured
from agent.engine.supported import supported
from wire.manifest import Format

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


def probe() -> dict[str, dict[str, Any]]:
    """Return {"runtimes": {name: version}, "unusable": {name: why}} of what is installed.

    "libraries" is {name: version} of those that some tasks need; "supported" is {name: what
    `agent.engine.supported` found out of that runtime}.

    One process for each: a library built for another NumPy or processor may take its process
    along, and the others shall still be found.
    """
    alone = json.dumps({})
    children = {name: _start(name, alone) for name in (*installed(), *libraries.installed())}
    usable, unusable, supports, helpers = {}, {}, {}, {}
    for name, child in children.items():
        answer = _outcome(child)
        if answer["why"]:
            unusable[name] = answer["why"]
        elif name in libraries.MODULES:
            helpers[name] = answer["version"]
        else:
            usable[name] = answer["version"]
            supports[name] = answer["supported"]
    unusable |= _unusable_accelerators(usable)
    return {
        "runtimes": usable,
        "unusable": unusable,
        "libraries": helpers,
        "supported": supports,
    }


def _unusable_accelerators(runtimes: Iterable[str]) -> dict[str, str]:
    """Return name -> why of the configured accelerators that no model can run on."""
    formats: tuple[tuple[Kind, Format], ...] = (("providers", "onnx"), ("delegates", "tflite"))
    unusable = {}
    for kind, format in formats:
        runtime = next((name for name in PREFERENCE[format] if name in runtimes), None)
        for each in configured(kind):
            if runtime is None:
                unusable[each.name] = f"no runtime for {format} models works here"
                continue
            child = _start(runtime, json.dumps({kind: [[each.name, each.options]]}))
            answer = _outcome(child)
            if why := answer["fallback"] or answer["why"]:
                unusable[each.name] = why.removeprefix(f"{each.name}: ")
    return unusable


def _start(runtime: str, accelerators: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "agent.engine", "--probe-runtime", runtime],
        env={**os.environ, VARIABLE: accelerators},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _outcome(child: "subprocess.Popen[str]") -> dict[str, Any]:
    """Return what the child told, or why it could not."""
    try:
        out, _ = child.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return _told(why=f"did not run a two-element model within {TIMEOUT_S} s")
    if child.returncode < 0:
        return _told(why=f"its process ended by {signal.Signals(-child.returncode).name}")
    try:
        return _told(**json.loads(out.splitlines()[-1]))
    except (IndexError, TypeError, ValueError):
        why = f"its process ended with code {child.returncode} and without an answer"
        return _told(why=why)


def probe_runtime(name: str) -> dict[str, Any]:
    """Run the embedded model with one runtime; `why` is empty when the answer was right.

    A library that tasks need is tried in its own way.
    """
    if name in libraries.MODULES:
        try:
            return _told(libraries.try_out(name))
        except Exception as error:
            return _told(why=_first_cause(error))
    import numpy as np

    if name not in MODULES:
        return _told(why=f"expected one of {', '.join(MODULES)}, got {name[:40]!r}")
    data = base64.b64decode(_ONNX_ADDER if name == "onnxruntime" else _TFLITE_ADDER)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adder"
            path.write_bytes(data)
            runtime = open_with(name, str(path), threads=1)
            (answer,) = runtime.run([np.array([1.5, -2.0], np.float32)])
    except Exception as error:
        return _told(why=f"{_first_cause(error)} (with NumPy {np.__version__})")
    if answer.tolist() != [3.0, -4.0]:
        return _told(why=f"1.5 + 1.5 and -2 + -2: got {answer.tolist()}")
    return _told(runtime.version, runtime.fallback, supported=supported(name))


def _told(
    version: str = "",
    fallback: str = "",
    why: str = "",
    supported: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {"version": version, "fallback": fallback, "why": why, "supported": supported or {}}


def _first_cause(error: BaseException) -> str:
    """Return what went wrong first: a library hides it behind what went wrong because of it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split())[:300] or type(error).__name__
