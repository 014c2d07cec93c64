"""A release that a device cannot run is refused before a byte of its model is fetched."""

from pathlib import Path

import flatbuffers
from ai_edge_litert import schema_py_generated as tfl

from fleet.core.views import DeviceView
from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for
from wire.ids import digest_hex
from wire.twin import DeploymentReport, Phase, Reason

NEWER = 12
"""A version of FULLY_CONNECTED that the last tflite-runtime, of 2023, has never heard of."""


def write_newer(path: Path) -> Path:
    """Write the sample model as a newer converter would: one operator in a later version."""
    whole = (SAMPLES / "digits-1/digits-int8.tflite").read_bytes()
    model = tfl.ModelT.InitFromPackedBuf(whole, 0)
    for code in model.operatorCodes:
        if code.builtinCode == tfl.BuiltinOperator.FULLY_CONNECTED:
            code.version = NEWER
    builder = flatbuffers.Builder(len(whole))
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def end_of(fleet: Fleet, agent: Agent) -> DeploymentReport:
    def ended() -> DeploymentReport | None:
        device: DeviceView = fleet.device(agent)
        return next((d for d in device.deployments if d.phase.final), None)

    return wait_for(f"the end on {agent.id}", ended)


def test_a_device_refuses_what_its_runtime_cannot_run_and_another_takes_it(
    default_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = default_fleet
    old = fleet.agent("old", runtime="tflite-runtime", labels={"made": "2023"})
    new = fleet.agent("new", runtime="ai-edge-litert", labels={"made": "2026"})
    for agent in (old, new):
        fleet.wait_until_online(agent)
    release = fleet.push(write_newer(tmp_path / "digits.tflite"))

    # One after the other: a rollout that half of its devices refuse is taken back.
    fleet.start_rollout(release, to="made=2026")
    taken = end_of(fleet, new)
    fleet.start_rollout(release, to="made=2023")
    refused = end_of(fleet, old)

    assert (refused.phase, refused.reason) == (Phase.REJECTED, Reason.UNSUPPORTED_OPERATOR)
    assert refused.detail.startswith(
        f"tflite-int8 needs FULLY_CONNECTED version {NEWER}, tflite-runtime has up to 10; here: "
    )
    assert "rejected (unsupported_operator): tflite-int8 needs FULLY_CONNECTED" in old.said()
    assert taken.phase is Phase.COMMITTED
    manifest = fleet.client.release("digits", 1).manifest
    assert manifest is not None
    artifact = digest_hex(manifest.variants[0].artifact.digest)
    held = {path.name for path in old.data_dir.rglob("*")}
    assert not [name for name in held if artifact in name]
