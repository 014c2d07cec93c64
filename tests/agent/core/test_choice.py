"""Which variant a device takes, and what a refusal before the first byte says."""

from typing import Any

import pytest

from tests.agent.core.world import World, make_release, phase_of
from wire.choice import ENGINE_BYTES, Device, choose, told
from wire.manifest import File, Manifest, Requires, TensorSpec, Variant
from wire.twin import Capabilities, Phase, Reason

MEBIBYTE = 1024 * 1024
TENSOR = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
ABLE = Capabilities(
    architecture="aarch64",
    runtimes={"onnxruntime": "1.24.1", "tflite-runtime": "2.14.0"},
    onnx_ir=10,
    onnx_opsets={"": 21, "ai.onnx.ml": 5},
    memory_bytes=512 * MEBIBYTE,
)
OPERATORS = {"tflite-runtime": {"CONV_2D": 7, "ADD": 5, "TFLite_Detection_PostProcess": 1}}


def variant(format: str = "onnx", name: str = "only", **requires: Any) -> Variant:
    artifact = File(name="model", digest="sha256:" + "1" * 64, size_bytes=10)
    return Variant(
        name=name,
        format=format,
        artifact=artifact,
        requires=Requires(**requires),
        inputs=(TENSOR,),
        outputs=(TENSOR,),
    )


def manifest(*variants: Variant) -> Manifest:
    return Manifest(
        model="digits", version=1, inputs=(TENSOR,), outputs=(TENSOR,), variants=variants
    )


def device(capabilities: Capabilities = ABLE, **means: int) -> Device:
    return Device(capabilities, OPERATORS, **means)


def refusal(wanted: Variant, on: Device | None = None) -> tuple[Reason, str]:
    release, on = manifest(wanted), on or device()
    chosen = choose(release, on)
    assert isinstance(chosen, list), "expected a refusal"
    return told(release, chosen, on)


@pytest.mark.parametrize(
    ("wanted", "reason", "says"),
    [
        (variant(architectures=("x86_64", "armv7l")), Reason.WRONG_ARCH,
         "only needs x86_64 or armv7l; here: aarch64"),
        (variant(runtimes={"onnxruntime": "1.25.0"}), Reason.NO_RUNTIME,
         "only needs onnxruntime 1.25.0 or newer; here: aarch64, onnxruntime 1.24.1"),
        (variant("tflite", runtimes={"ai-edge-litert": "2.1"}), Reason.NO_RUNTIME,
         "only needs ai-edge-litert 2.1 or newer"),
        (variant(onnx_ir=11), Reason.OPSET_TOO_NEW,
         "only needs ONNX IR version 11, onnxruntime reads up to 10"),
        (variant(onnx_opsets={"": 22}), Reason.OPSET_TOO_NEW,
         "only needs opset 22 of ai.onnx, onnxruntime has up to 21"),
        (variant(onnx_opsets={"": 21, "ai.onnx.ml": 6}), Reason.OPSET_TOO_NEW,
         "opset 6 of ai.onnx.ml, onnxruntime has up to 5"),
        (variant("tflite", tflite_operators={"ADD": 5, "CONV_2D": 8}),
         Reason.UNSUPPORTED_OPERATOR, "only needs CONV_2D version 8, tflite-runtime has up to 7"),
        (variant("tflite", tflite_operators={"GELU": 2}), Reason.UNSUPPORTED_OPERATOR,
         "only needs GELU version 2, tflite-runtime has none"),
        (variant("tflite", custom_operators=("Sparkle",)), Reason.UNSUPPORTED_OPERATOR,
         "only needs Sparkle, which is not built in"),
        (variant(custom_operators=("acme::Sparkle",)), Reason.UNSUPPORTED_OPERATOR,
         "only needs acme::Sparkle, which is not built in"),
        (variant(memory_bytes=500 * MEBIBYTE), Reason.OUT_OF_MEMORY,
         "only needs about 564 MiB of memory with its engine, 512 MiB are in all"),
    ],
)  # fmt: skip
def test_a_refusal_names_what_is_needed_and_what_is_there(
    wanted: Variant, reason: Reason, says: str
) -> None:
    found, detail = refusal(wanted)

    assert found is reason
    assert says in detail


def test_memory_that_others_hold_or_the_configuration_denies_is_named() -> None:
    wanted = variant(memory_bytes=100 * MEBIBYTE)

    busy = refusal(wanted, device(memory_free_bytes=120 * MEBIBYTE))
    capped = refusal(wanted, device(memory_limit_bytes=64 * MEBIBYTE))

    assert busy[0] is capped[0] is Reason.OUT_OF_MEMORY
    assert "needs about 164 MiB of memory with its engine, 120 MiB are free for engines" in busy[1]
    assert "needs about 100 MiB of memory, [engine] memory_mb allows 64" in capped[1]


@pytest.mark.parametrize(
    "wanted",
    [
        variant(onnx_ir=10, onnx_opsets={"": 21, "acme": 99}, memory_bytes=MEBIBYTE),
        variant(runtimes={"onnxruntime": "1.24.1"}),
        variant("tflite", tflite_operators={"CONV_2D": 7, "ADD": 1}),
        variant("tflite", custom_operators=("TFLite_Detection_PostProcess",)),
        variant(architectures=("aarch64",), memory_bytes=512 * MEBIBYTE - ENGINE_BYTES["onnx"]),
    ],
)
def test_what_just_fits_is_taken(wanted: Variant) -> None:
    assert choose(manifest(wanted), device()) == wanted


def test_the_first_variant_that_fits_is_taken() -> None:
    too_new, fits = variant(name="new", onnx_ir=11), variant("tflite", name="old")

    assert choose(manifest(too_new, fits), device()) == fits


def test_of_several_refusals_the_nearest_to_running_gives_the_reason() -> None:
    release = manifest(
        variant(name="big", memory_bytes=900 * MEBIBYTE),
        variant(name="other", architectures=("x86_64",)),
    )

    chosen = choose(release, device())

    assert isinstance(chosen, list)
    reason, detail = told(release, chosen, device())
    assert reason is Reason.OUT_OF_MEMORY
    assert "big needs about" in detail and "other needs x86_64" in detail


def test_a_runtime_that_is_broken_says_why() -> None:
    broken = ABLE.model_copy(
        update={"runtimes": {}, "unusable": {"onnxruntime": "its process ended by SIGILL"}}
    )

    reason, detail = refusal(variant(), device(broken))

    assert reason is Reason.NO_RUNTIME
    assert detail.endswith("no runtime; onnxruntime unusable: its process ended by SIGILL")


def test_what_a_device_does_not_know_of_itself_refuses_nothing() -> None:
    unknown = Device(Capabilities(runtimes={"onnxruntime": "1.24.1", "tflite-runtime": "2.14.0"}))
    demanding = [
        variant(onnx_ir=99, onnx_opsets={"": 99}, memory_bytes=2**40),
        variant("tflite", tflite_operators={"GELU": 99}),
    ]

    assert [choose(manifest(each), unknown) for each in demanding] == demanding


def test_a_refused_release_costs_the_device_its_manifest_and_no_more() -> None:
    world = World()
    made = make_release(1, requires=Requires(onnx_opsets={"": 22}))
    world.state.capabilities = ABLE
    world.want(world.add(made), "r-1")

    world.settle()

    assert phase_of(world) == (Phase.REJECTED, Reason.OPSET_TOO_NEW)
    assert "opset 22 of ai.onnx" in world.reports[-1].deployments[0].detail
    assert set(world.blobs) <= {made.digest}
    own = {offer.index for offer in made.offers if offer.file == made.digest}
    assert {index for index, _, _ in world.fetched} == own
