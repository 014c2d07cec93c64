"""The newest file format, opsets and operator versions that a runtime takes, asked of itself.

No library tells them, but each says whether it opens a model; so it is shown models that differ
from one it opens in a single number. That takes a quarter of a second.
"""

import base64
import importlib
import struct
from typing import Any

from agent.engine.runtimes import MODULES

# Add of two tensors; its last six bytes are the opset of ai.onnx, its second the file format.
_ONNX = base64.b64decode(
    "CAg6OQoOCgF4CgF4EgF5IgNBZGQSBWFkZGVyWg8KAXgSCgoICAESBAoCCAJiDwoBeRIKCggIARIECgIIAkIECgAQDQ=="
)
_OPSET_BYTES = 6
_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")
_MOST = 120
"""One byte holds it, in protobuf."""

# No tensor and no operator: one operator code. Its number and version lie at these places, and the
# number once more in the one byte that files from before 2020 have for it, 127 for larger ones.
_TFLITE = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAAUAAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAM"
    "ABQAEAAMAAgABAAMAAAAEAAAABAAAAAQAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAEAAAAAwAEAAPAAAACAAEAAwA"
    "AABEMyIRiHdmVQAAAH8="
)
_CODE_AT, _VERSION_AT, _OLD_CODE_AT = 140, 144, 151
_LARGEST_OLD = 127
_CUSTOM = ("AudioSpectrogram", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess")
"""Operators that are custom by their number and come with every build all the same."""
_NO_VERSION = 2**31 - 1
_NEWEST_VERSION = 64
_MOST_OPERATORS = 1024


def supported(runtime: str) -> dict[str, Any]:
    """Return {"onnx_ir", "onnx_opsets"} or {"operators"} of one runtime."""
    if runtime == "onnxruntime":
        return _onnx()
    return {"operators": _tflite(importlib.import_module(f"{MODULES[runtime]}.interpreter"))}


def _onnx() -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4

    def opens(model: bytes) -> bool:
        try:
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception:
            return False
        return True

    graph = _ONNX[2:-_OPSET_BYTES]
    file = _ONNX[:-_OPSET_BYTES]
    opsets = {"": _newest(_ONNX[-1], lambda n: opens(file + _opset("", n)))}
    for domain in _DOMAINS[1:]:
        newest = _newest(0, lambda n, domain=domain: opens(_ONNX + _opset(domain, n)))
        if 0 < newest < _MOST:  # a domain that it does not know has every version
            opsets[domain] = newest
    opset = _ONNX[-_OPSET_BYTES:]
    return {
        "onnx_ir": _newest(_ONNX[1], lambda n: opens(bytes([_ONNX[0], n]) + graph + opset)),
        "onnx_opsets": opsets,
    }


def _newest(known: int, opens: Any) -> int:
    while known < _MOST and opens(known + 1):
        known += 1
    return known


def _opset(domain: str, version: int) -> bytes:
    """Return ModelProto.opset_import, the field with the number 8."""
    name = domain.encode()
    entry = bytes([0x0A, len(name)]) + name + bytes([0x10, version])
    return bytes([0x42, len(entry)]) + entry


def _tflite(library: Any) -> dict[str, int]:
    def refusal(code: int, version: int) -> str:
        model = bytearray(_TFLITE)
        struct.pack_into("<i", model, _CODE_AT, code)
        struct.pack_into("<i", model, _VERSION_AT, version)
        model[_OLD_CODE_AT] = min(code, _LARGEST_OLD)
        try:
            library.Interpreter(model_content=bytes(model))
        except Exception as error:
            return str(error) or type(error).__name__
        return ""

    found = dict.fromkeys(_CUSTOM, 1)
    for code in range(_MOST_OPERATORS):
        # It names the operator when it has to say that it knows no such version.
        text = refusal(code, _NO_VERSION)
        if "out of range" in text:
            break
        _, quote, rest = text.partition("builtin opcode '")
        version = _newest_version(refusal, code) if quote else 0
        if version:
            found[rest.partition("'")[0]] = version
    return found


def _newest_version(refusal: Any, code: int) -> int:
    version = 0
    while version < _NEWEST_VERSION and not refusal(code, version + 1):
        version += 1
    return version
