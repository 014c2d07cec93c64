"""Challengers that hang, eat memory or crash, in their trial or on probation, beside a champion."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet.core.views import DeviceView
from tests.e2e.app import App
from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for
from wire.twin import DeploymentReport, Phase, Probation, Reason

LIMITS = {"engine": {"runtimes": ["onnxruntime"], "memory_mb": 256, "invoke_timeout_s": 2}}
LONG = Probation(labelled_pairs=100_000, deadline_s=600)


def write_challenger(path: Path, mood: str, *, at_once: bool) -> Path:
    """Write a model of digits that misbehaves on any input (`at_once`) or on any but zeros.

    `hangs`: a loop of 2^62 rounds; `eats`: 4 GiB of zeros; `crashes`: the one division of int64
    that has no answer, which ends the process on x86.
    """
    bad, good = {"hangs": (2**62, 0), "eats": (2**30, 1), "crashes": (-1, 1)}[mood]
    constants = {
        "nothing": np.float32(-1 if at_once else 0),
        "bad": np.int64(bad),
        "good": np.int64(good),
        "lowest": np.int64(-(2**63)),
        "row": np.array([-1, 64]),
        "weights": np.zeros((64, 10), np.float32),
        "one": np.array([1]),
        "zero": np.float32(0),
        "yes": np.array(True),
    }
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "nothing"], ["now"]),
        helper.make_node("Where", ["now", "bad", "good"], ["number"]),
        *_deed(mood),
        helper.make_node("Mul", ["deed", "zero"], ["vain"]),
        helper.make_node("Reshape", ["image", "row"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        helper.make_node("Add", ["scores", "vain"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        mood,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 8, 8, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    onnx.checker.check_model(model)
    onnx.save_model(model, path)
    return path


def _deed(mood: str) -> list[onnx.NodeProto]:
    """Return what makes the scalar float `deed` of the int64 `number`."""
    if mood == "crashes":
        return [
            helper.make_node("Div", ["lowest", "number"], ["ratio"]),
            helper.make_node("Cast", ["ratio"], ["deed"], to=TensorProto.FLOAT),
        ]
    if mood == "eats":
        return [
            helper.make_node("Reshape", ["number", "one"], ["size"]),
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["deed"], keepdims=0),
        ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]),
         helper.make_node("Cos", ["before"], ["after"])],
        "round",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, []),
         helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("before", TensorProto.FLOAT, [])],
        [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("after", TensorProto.FLOAT, [])],
    )  # fmt: skip
    return [helper.make_node("Loop", ["number", "yes", "top"], ["deed"], body=body)]


def end_of(fleet: Fleet, agent: Agent, version: int) -> DeploymentReport:
    """Return how the deployment of a version ended."""

    def ended() -> DeploymentReport | None:
        device: DeviceView = fleet.device(agent)
        found = [d for d in device.deployments if d.version == version and d.phase.final]
        return found[0] if found else None

    return wait_for(f"the end of digits@{version}", ended)


@pytest.mark.parametrize(
    ("when", "phase", "reasons"),
    [
        ("in its trial", Phase.FAILED, [Reason.HUNG, Reason.OUT_OF_MEMORY, Reason.CRASHED]),
        ("on probation", Phase.ROLLED_BACK, [Reason.HUNG, Reason.CRASHED, Reason.CRASHED]),
    ],
)
def test_a_challenger_that_misbehaves_never_disturbs_the_champion(
    default_fleet: Fleet, tmp_path: Path, when: str, phase: Phase, reasons: list[Reason]
) -> None:
    fleet = default_fleet
    agent = fleet.agent("cam-1", **LIMITS)
    fleet.wait_until_online(agent)
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    champion = agent.engine()
    ends = []

    with App(agent.url, seed=1) as app:
        for version, mood in enumerate(("hangs", "eats", "crashes"), 2):
            file = write_challenger(tmp_path / f"{mood}.onnx", mood, at_once=when == "in its trial")
            release = fleet.push(file, "--name", "digits")
            fleet.start_rollout(release, probation=LONG)
            ends.append(end_of(fleet, agent, version))
            app.wait_for_answers(20)

    assert [(end.phase, end.reason) for end in ends] == [(phase, reason) for reason in reasons]
    assert agent.running and agent.engine().pid == champion.pid
    assert not app.broken and not app.refused
    assert set(app.versions) == {1}
    # On a busy machine; a hang would be the whole of its time, four times 2 s at low priority.
    assert app.longest_wait_s < 6
