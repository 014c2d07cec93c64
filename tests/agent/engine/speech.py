"""Speech, noise, and public models that listen, out of the packages that bring them."""

import hashlib
import importlib.util
import io
import subprocess
import wave
from pathlib import Path
from typing import Any

import numpy as np

from agent.control import ModelSpec
from agent.engine.runtimes import open_with
from tests.agent.engine.harness import Answer, Client
from wire.codec import encode
from wire.manifest import File, Manifest, Quantization, TensorSpec, Variant
from wire.stream import Stream
from wire.task import Task

RATE_HZ = 16_000
SOUNDS = Path("/usr/share/sounds/alsa")

Array = np.ndarray[Any, Any]


def package_file(package: str, path: str) -> Path:
    """Return a file of an installed package without running any of its code."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / path


VAD = package_file("silero_vad", "data/silero_vad.onnx")
WAKE_WORD = package_file("pymicro_wakeword", "models/okay_nabu.tflite")

VAD_STREAM: dict[str, Any] = {
    "rate_hz": RATE_HZ,
    "frame": 512,
    "context": 64,
    "state": [{"output": "stateN", "input": "state"}],
    "constants": {"sr": RATE_HZ},
}
WAKE_WORD_STREAM: dict[str, Any] = {
    "rate_hz": RATE_HZ,
    "frame": 3,
    "state": "internal",
    "features": {"extractor": "pymicro-features", "version": "2"},
}


def spoken(name: str) -> Array:
    """Return one of Debian's test sounds, such as "Front_Center" or "Noise", INT16 at 16 kHz."""
    return _at_16_khz((SOUNDS / f"{name}.wav").read_bytes())


def said(text: str) -> Array:
    """Return what a synthesizer makes of a text, INT16 at 16 kHz."""
    command = ["espeak-ng", "-v", "en-us", "-s", "150", "--stdout", text]
    done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    return _at_16_khz(done.stdout)


def silence(seconds: float) -> Array:
    return np.zeros(int(seconds * RATE_HZ), np.int16)


def wav(samples: Array, rate_hz: int = RATE_HZ, channels: int = 1) -> bytes:
    """Return samples as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def _at_16_khz(data: bytes) -> Array:
    with wave.open(io.BytesIO(data)) as file:
        samples = np.frombuffer(file.readframes(2**24), "<i2").astype(np.float64)
        ratio = file.getframerate() / RATE_HZ
    wide = max(1, int(ratio))
    smooth = np.convolve(samples, np.ones(wide) / wide, "same")
    places = np.arange(int(len(samples) / ratio)) * ratio
    return np.interp(places, np.arange(len(smooth)), smooth).astype(np.int16)


class ListeningRelease:
    """A release of a model that listens, on disk."""

    def __init__(
        self,
        folder: Path,
        path: Path,
        stream: dict[str, Any],
        *,
        model: str = "vad",
        version: int = 1,
        task: Task | None = None,
        labels: tuple[str, ...] = (),
        golden: dict[str, Array] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[str, str] = {}
        onnx = path.suffix == ".onnx"
        runtime = open_with("onnxruntime" if onnx else "ai-edge-litert", str(path), 1)
        inputs, outputs = [
            tuple(
                TensorSpec(
                    name=port.name,
                    datatype=port.datatype,
                    shape=port.shape,
                    quantization=QUANTIZATION.get(port.datatype),
                )
                for port in ports
            )
            for ports in (runtime.inputs, runtime.outputs)
        ]
        given = None
        if golden is not None:
            buffer = io.BytesIO()
            np.savez(buffer, **golden)
            given = self._store("golden.npz", buffer.getvalue())
        self.manifest = Manifest(
            model=model,
            version=version,
            task=task or Task(kind="classification", scores=outputs[0].name),
            stream=Stream.model_validate(stream),
            inputs=inputs,
            outputs=outputs,
            variants=(
                Variant(
                    name="only",
                    format="onnx" if onnx else "tflite",
                    artifact=self._store(path.name, path.read_bytes()),
                    inputs=inputs,
                    outputs=outputs,
                ),
            ),
            labels=self._store("labels.txt", "\n".join(labels).encode()) if labels else None,
            golden=given,
        )
        manifest = self._store("manifest.json", encode(self.manifest))
        path_of = self._files[manifest.digest]
        self.spec = ModelSpec(model, version, manifest.digest, "only", path_of, self._files)

    def _store(self, name: str, data: bytes) -> File:
        hexed = hashlib.sha256(data).hexdigest()
        (self._folder / hexed).write_bytes(data)
        self._files[f"sha256:{hexed}"] = str(self._folder / hexed)
        return File(name=name, digest=f"sha256:{hexed}", size_bytes=len(data))


# As the wake word's tensors have it.
QUANTIZATION = {
    "INT8": Quantization(scale=(0.10196078568696976,), zero_point=(-128,)),
    "UINT8": Quantization(scale=(0.00390625,), zero_point=(0,)),
}


def vad(folder: Path, version: int = 1, **changes: Any) -> ListeningRelease:
    stream = {**VAD_STREAM, **changes}
    return ListeningRelease(folder, VAD, stream, version=version, labels=("quiet", "speech"))


def wake_word(folder: Path, version: int = 1, **changes: Any) -> ListeningRelease:
    return ListeningRelease(
        folder,
        WAKE_WORD,
        {**WAKE_WORD_STREAM, **changes},
        model="nabu",
        version=version,
        labels=("nothing", "okay nabu"),
    )


def hear(
    client: Client,
    samples: Array | None,
    id: int | str,
    *,
    model: str = "vad",
    start: bool = False,
    end: bool = False,
    request: str = "",
) -> Answer:
    """Send one request of a stream, as INT16 in JSON."""
    parameters: dict[str, Any] = {"sequence_id": id}
    if start:
        parameters["sequence_start"] = True
    if end:
        parameters["sequence_end"] = True
    inputs = []
    if samples is not None:
        shape, data = [len(samples)], samples.tolist()
        inputs = [{"name": "audio", "datatype": "INT16", "shape": shape, "data": data}]
    body: dict[str, Any] = {"parameters": parameters, "inputs": inputs}
    if request:
        body["id"] = request
    return client.ask("POST", f"/v2/models/{model}/infer", body)


def told(answer: Answer) -> dict[str, list[Any]]:
    """Return the outputs of an answer by name; it must be one."""
    assert answer.status == 200, answer.body
    return {output["name"]: output["data"] for output in answer.json["outputs"]}


def restarted(answer: Answer) -> bool:
    return bool(answer.json["parameters"].get("stream_restarted", False))


def scores_of(
    client: Client, samples: Array, id: int | str, *, model: str = "vad", piece: int = 1600
) -> list[float]:
    """Stream a whole sound in pieces and return the score of every frame."""
    scores: list[float] = []
    for at in range(0, len(samples), piece):
        answer = hear(
            client, samples[at : at + piece], id, model=model,
            start=at == 0, end=at + piece >= len(samples),
        )  # fmt: skip
        scores += next(iter(told(answer).values()))
    return scores
