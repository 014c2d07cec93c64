from typing import Any

import pytest
from pydantic import ValidationError

from tests.wire.test_manifest import manifest, variant
from wire.codec import decode, encode
from wire.manifest import Manifest


def spec(name: str, datatype: str, *shape: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


INPUTS = [spec("input", "FP32", -1, -1), spec("state", "FP32", 2, -1, 128), spec("sr", "INT64")]
OUTPUTS = [spec("output", "FP32", -1, 1), spec("stateN", "FP32", -1, -1, -1)]
VAD = {
    "rate_hz": 16000,
    "frame": 512,
    "context": 64,
    "state": [{"output": "stateN", "input": "state"}],
    "constants": {"sr": 16000},
}
FEATURES = {"extractor": "pymicro-features", "version": "2.0"}


def listening(
    inputs: list[dict[str, Any]] = INPUTS, outputs: list[dict[str, Any]] = OUTPUTS, **stream: Any
) -> Manifest:
    tensors = {"inputs": inputs, "outputs": outputs}
    return manifest(**tensors, variants=[variant("a", **tensors)], stream={**VAD, **stream})


def hidden(datatype: str = "INT8", scale: float | None = 0.1, rows: int = 3) -> Manifest:
    quantization = None if scale is None else {"scale": [scale], "zero_point": [0]}
    inputs = [spec("rows", datatype, 1, rows, 40, quantization=quantization)]
    tensors = {"inputs": inputs, "outputs": [spec("score", "UINT8", 1, 1)]}
    stream = {"rate_hz": 16000, "frame": 3, "state": "internal", "features": FEATURES}
    return manifest(**tensors, variants=[variant("a", **tensors)], stream=stream)


@pytest.mark.parametrize("release", [listening(), hidden()], ids=["carried", "hidden"])
def test_a_stream_travels_whole(release: Manifest) -> None:
    again = decode(Manifest, encode(release))

    assert again == release
    assert again.digest == release.digest


def test_a_release_without_a_stream_is_written_as_before_there_were_any() -> None:
    assert b"stream" not in encode(manifest())


def test_frames_follow_one_another_unless_they_overlap() -> None:
    apart, overlapping = listening().stream, listening(hop=256).stream

    assert apart is not None and overlapping is not None
    assert (apart.step, overlapping.step, apart.window) == (512, 256, 576)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop": 513}, "expected at most a frame, 512, got 513"),
        ({"state": []}, "to feed each of .* once"),
        ({"constants": {}}, "to feed each of .* once"),
        ({"constants": {"sr": 1, "other": 1}}, "to feed each of .* once"),
        ({"tensor": "state"}, "to feed each of .* once"),
        ({"state": [{"output": "state", "input": "state"}]}, "expected an output among"),
        ({"features": FEATURES}, r"expected shape \[1, 576, 40\] for context and frame"),
        ({"features": FEATURES, "rate_hz": 8000}, "expected 16000 as pymicro-features takes"),
        ({"features": {**FEATURES, "version": "two"}}, "pattern"),
        ({"features": {**FEATURES, "extractor": "mel"}}, "pymicro-features"),
        ({"outputs": OUTPUTS[1:]}, "expected an output that is no state"),
        ({"outputs": [OUTPUTS[0], spec("stateN", "FP16", 2, 1, 128)]}, "expected FP32"),
        ({"outputs": [OUTPUTS[0], spec("stateN", "FP32", 2, 1, 64)]}, "as state takes"),
        ({"inputs": [spec("input", "FP32", 1, 512), *INPUTS[1:]]}, r"expected shape \[1, 576\]"),
        ({"inputs": [spec("input", "FP64", 1, 576), *INPUTS[1:]]}, "expected FP32, INT16 or"),
        ({"idle_s": 0}, "greater than or equal to 1"),
        ({"frame": 0}, "greater than or equal to 1"),
    ],
)
def test_a_stream_that_does_not_go_with_its_model_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        listening(**changes)


@pytest.mark.parametrize(("datatype", "scale"), [("INT8", None), ("BYTES", 0.1), ("INT32", 0.1)])
def test_features_are_for_reals_and_for_what_is_quantized(
    datatype: str, scale: float | None
) -> None:
    with pytest.raises(ValidationError, match="expected FP32, INT16 or quantized INT8 or UINT8"):
        hidden(datatype, scale)
    with pytest.raises(ValidationError, match=r"expected shape \[1, 3, 40\]"):
        hidden(rows=4)


def test_a_stream_and_pictures_exclude_each_other() -> None:
    tensors = {"inputs": [spec("input", "FP32", 1, 512)], "outputs": OUTPUTS[:1]}
    release = {**tensors, "variants": [variant("a", **tensors)]}
    stream = {"rate_hz": 16000, "frame": 512}
    task = {"input": {"kind": "text", "head": 512}}

    assert manifest(**release, stream=stream) and manifest(**release, task=task)
    with pytest.raises(ValidationError, match="expected none beside a stream"):
        manifest(**release, stream=stream, task=task)
