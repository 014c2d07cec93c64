"""What a runtime says it supports is what it opens."""

import json
import subprocess
import sys
from typing import Any

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as tfl

from agent.engine.supported import supported
from tests.agent.engine.models import onnx_adder


def ask(code: str, *arguments: str) -> str:
    """Run in a process of its own: two TFLite libraries do not go into one."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def onnx_refusal(ir: int, domain: str, version: int) -> str:
    """Return what onnxruntime says to a model of this format and opset, empty when it opens it."""
    import onnx
    import onnxruntime

    model = onnx.load_from_string(onnx_adder())
    model.ir_version = ir
    imports = {entry.domain: entry.version for entry in model.opset_import} | {domain: version}
    del model.opset_import[:]
    for name, number in imports.items():
        model.opset_import.append(onnx.helper.make_opsetid(name, number))
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error)
    return ""


def tflite_model(code: int, version: int, custom: str = "") -> bytes:
    """Return a model that names one operator, and has a node of it if it is a custom one."""
    model = tfl.ModelT()
    model.version, model.buffers = 3, [tfl.BufferT()]
    named = tfl.OperatorCodeT()
    named.builtinCode, named.deprecatedBuiltinCode = code, min(code, 127)
    named.version, named.customCode = version, custom or None
    graph = tfl.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [], []
    if custom:
        node = tfl.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = 0, [], []
        node.customOptions = [0, 0, 1, 0, 0x24, 1]  # a FlexBuffers map without entries
        graph.operators = [node]
    model.operatorCodes, model.subgraphs = [named], [graph]
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


OPENED = """
import importlib, sys
library = importlib.import_module(sys.argv[1] + ".interpreter")
try:
    interpreter = library.Interpreter(model_content=bytes.fromhex(sys.argv[2]))
    interpreter.allocate_tensors()
    print("opened")
except Exception as error:
    print(" ".join(str(error).split()))
"""


def test_onnxruntime_opens_the_newest_it_names_and_nothing_newer() -> None:
    found = supported("onnxruntime")

    newest, opsets = found["onnx_ir"], found["onnx_opsets"]
    assert newest >= 10 and opsets[""] >= 21 and opsets["ai.onnx.ml"] >= 4
    assert onnx_refusal(newest, "", opsets[""]) == ""
    assert "Unsupported model IR version" in onnx_refusal(newest + 1, "", opsets[""])
    assert "under development" in onnx_refusal(newest, "", opsets[""] + 1)
    assert onnx_refusal(newest, "ai.onnx.ml", opsets["ai.onnx.ml"]) == ""
    assert "under development" in onnx_refusal(newest, "ai.onnx.ml", opsets["ai.onnx.ml"] + 1)


@pytest.mark.parametrize("runtime", ["ai-edge-litert", "tflite-runtime"])
def test_a_tflite_library_opens_the_newest_versions_it_names_and_nothing_newer(
    runtime: str,
) -> None:
    code = "import json, sys; from agent.engine.supported import supported; "
    found: dict[str, Any] = json.loads(
        ask(code + "print(json.dumps(supported(sys.argv[1])))", runtime)
    )["operators"]
    module = runtime.replace("-", "_")

    assert len(found) > 120
    for name in ("ADD", "CONV_2D", "FULLY_CONNECTED", "GELU", "VAR_HANDLE"):
        number = getattr(tfl.BuiltinOperator, name)
        assert ask(OPENED, module, tflite_model(number, found[name]).hex()) == "opened"
        refusal = ask(OPENED, module, tflite_model(number, found[name] + 1).hex())
        assert f"Didn't find op for builtin opcode '{name}'" in refusal


@pytest.mark.parametrize("runtime", ["ai-edge-litert", "tflite-runtime"])
def test_custom_operators_that_come_with_every_build_do(runtime: str) -> None:
    module = runtime.replace("-", "_")
    number = tfl.BuiltinOperator.CUSTOM

    for name in ("AudioSpectrogram", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess"):
        # It is found, and then misses its inputs.
        assert "NumInputs(node)" in ask(OPENED, module, tflite_model(number, 1, name).hex())
    unknown = ask(OPENED, module, tflite_model(number, 1, "Sparkle").hex())
    assert "NumInputs(node)" not in unknown and "Sparkle" in unknown
