"""Values for tests of the fleet's surface."""

from fleet.core.views import DeviceView, ScoreView
from tests.fleet.memory import NOW
from wire.ids import digest_of
from wire.manifest import File, Manifest, Requires, TensorSpec, Variant
from wire.twin import Capabilities, DeploymentReport, Phase, Reason, Serving

ARTIFACT = b"not really a model, but bytes are bytes to a store"


def sample_manifest(version: int = 1, artifact: bytes = ARTIFACT) -> Manifest:
    image = TensorSpec(name="image", datatype="UINT8", shape=(-1, 28, 28))
    scores = TensorSpec(name="scores", datatype="FP32", shape=(-1, 10))
    file = File(name="digits.onnx", digest=digest_of(artifact), size_bytes=len(artifact))
    return Manifest(
        model="digits",
        version=version,
        description="handwritten digits",
        inputs=(image,),
        outputs=(scores,),
        variants=(
            Variant(
                name="int8-onnx",
                format="onnx",
                artifact=file,
                requires=Requires(onnx_opsets={"": 17}),
                inputs=(image,),
                outputs=(scores,),
            ),
        ),
        metrics={"accuracy": 0.987},
    )


def sample_device(id: str = "cam-1", *, online: bool = True) -> DeviceView:
    digest = sample_manifest().digest
    return DeviceView(
        id=id,
        online=online,
        last_seen=NOW - 130,
        agent="farflung 0.1.0",
        labels={"site": "berlin", "line": "2"},
        capabilities=Capabilities(
            architecture="aarch64",
            python="3.11.9",
            runtimes={"onnxruntime": "1.32.0"},
            unusable={"tflite-runtime": "_ARRAY_API not found"},
            memory_bytes=4 * 2**30,
            cpus=4,
        ),
        desired_revision=7,
        reported_revision=6,
        serving=(
            Serving(
                model="digits",
                version=1,
                manifest=digest,
                variant="int8-onnx",
                runtime="onnxruntime 1.32.0",
                since=int(NOW) - 1000,
            ),
        ),
        deployments=(
            DeploymentReport(
                model="digits",
                version=2,
                rollout="r-1",
                manifest="sha256:" + "22" * 32,
                phase=Phase.ROLLED_BACK,
                since=int(NOW) - 60,
                reason=Reason.WORSE_THAN_CHAMPION,
                detail="27 worse, 6 better, E = 41.2",
            ),
        ),
        api=("http://127.0.0.1:8080",),
        health={
            "agent_cpu_percent": 0.6,
            "engine_cpu_percent": 12.0,
            "agent_rss_bytes": 30 * 2**20,
            "engine_rss_bytes": 60 * 2**20,
            "disk_free_bytes": 5 * 2**30,
            "temperature_c": 51.3,
        },
        scores=(
            ScoreView(
                model="digits",
                version=1,
                manifest=digest,
                variant="int8-onnx",
                requests=1234,
                errors=0,
                p50_ms=1.2,
                p95_ms=3.44,
                labelled=600,
                correct=590,
                accuracy=590 / 600,
                accuracy_low=0.9696,
                accuracy_high=0.9909,
            ),
        ),
    )
