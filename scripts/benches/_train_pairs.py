#!/usr/bin/env python3
"""Train the models that `update_bytes` compares: really trained, really quantized.

    python _train_pairs.py FOLDER

Needs the extra [train]. A convolutional network of 1.4 million weights learns handwritten digits
and is then taught on for two epochs with blurred, noisy ones, as a site's own pictures would be,
at every rate of the ladder. Each network becomes ONNX and TFLite, int8 inside. The same versions
on the same machine give the same bytes.
"""

import copy
import io
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sample_models import onnx_form, tflite_form
from sample_models.digits import CLASSES, Digits, split

SEED = 7
SIDE = 16
CHANNELS = (32, 64, 128, 128)
HIDDEN = 576
BATCH = 32
CALIBRATION_IMAGES = 128
ADAMW_RATES = ("1e-6", "1e-5", "3e-5", "1e-4", "3e-4", "1e-3")
SGD_RATE = "1e-2"


@dataclass(frozen=True)
class Pictures:
    """float32 (n, 1, 16, 16), 0-1, and labels int64 (n,)."""

    images: torch.Tensor
    labels: torch.Tensor


def pictures(digits: Digits, *, noise: float, seed: int) -> Pictures:
    """Return the digits at twice their size; with noise: blurred, shifted, speckled."""
    images = torch.from_numpy(digits.images.transpose(0, 3, 1, 2) / np.float32(16))
    images = nn.functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear")
    if noise:
        random = torch.Generator().manual_seed(seed)
        images = nn.functional.avg_pool2d(images, 3, stride=1, padding=1).roll((1, 1), (2, 3))
        images = (images + noise * torch.randn(images.shape, generator=random)).clamp(0, 1)
    return Pictures(images, torch.from_numpy(digits.labels))


def fresh(seed: int) -> nn.Sequential:
    """Return an untrained network: (batch, 1, 16, 16) to logits (batch, 10)."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for place, (given, made) in enumerate(zip((1, *CHANNELS), CHANNELS, strict=False)):
        layers += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place < 2 else []
    flat = CHANNELS[-1] * (SIDE // 4) ** 2
    layers += [nn.Flatten(), nn.Linear(flat, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)]
    return nn.Sequential(*layers)


def taught(
    start: nn.Sequential, data: Pictures, optimizer: str, rate: str, *, epochs: int, head: bool
) -> nn.Sequential:
    """Return `start` trained on `data`, or only its last layer; `start` stays as it was."""
    network = copy.deepcopy(start)
    learning = list((network[-1] if head else network).parameters())
    make = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    steps = make(learning, lr=float(rate))
    shuffle = torch.Generator().manual_seed(SEED)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.labels), generator=shuffle).split(BATCH):
            steps.zero_grad()
            loss = nn.functional.cross_entropy(network(data.images[batch]), data.labels[batch])
            loss.backward()
            steps.step()
    return network


def accuracy(network: nn.Sequential, data: Pictures) -> float:
    """Return the share of right answers."""
    with torch.no_grad():
        return float((network(data.images).argmax(1) == data.labels).float().mean())


def layers_of(network: nn.Sequential) -> Iterable[tuple[str, str, nn.Module]]:
    """Yield (kind, name, module) for all that is not an activation, in order."""
    kinds = {nn.Conv2d: "conv", nn.MaxPool2d: "pool", nn.Flatten: "flatten", nn.Linear: "dense"}
    for place, module in enumerate(network):
        if type(module) in kinds:
            yield kinds[type(module)], f"{kinds[type(module)]}{place}", module


def arrays(module: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight and bias."""
    return module.weight.detach().numpy(), module.bias.detach().numpy()


def as_onnx(network: nn.Sequential) -> onnx.ModelProto:
    """Return the float model: `image` (batch, 1, 16, 16) to `probabilities` (batch, 10)."""
    nodes, weights, last = [], [], "image"
    for kind, name, module in layers_of(network):
        given = [last]
        if kind in ("conv", "dense"):
            for part, array in zip(("weight", "bias"), arrays(module), strict=True):
                weights.append(numpy_helper.from_array(array, f"{name}_{part}"))
                given.append(f"{name}_{part}")
        made, attributes = {
            "conv": ("Conv", {"kernel_shape": [3, 3], "pads": [1] * 4}),
            "pool": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            "flatten": ("Flatten", {}),
            "dense": ("Gemm", {"transB": 1}),
        }[kind]
        nodes.append(helper.make_node(made, given, [name], **attributes))
        last = name
        if kind == "conv" or (kind == "dense" and module.out_features != CLASSES):
            last = f"{name}_relu"
            nodes.append(helper.make_node("Relu", [name], [last]))
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    edge = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "pictures",
        [edge("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [edge("probabilities", TensorProto.FLOAT, ["batch", CLASSES])],
        weights,
    )
    opset = helper.make_opsetid("", onnx_form.OPSET)
    return helper.make_model(graph, ir_version=onnx_form.IR, opset_imports=[opset])


def as_tflite(network: nn.Sequential) -> bytes:
    """Return the float model: `image` (1, 16, 16, 1) to `probabilities` (1, 10)."""
    build = tflite_form.Builder()
    shape: tuple[int, ...] = (SIDE, SIDE, 1)
    image = last = build.tensor("image", shape)
    for kind, name, module in layers_of(network):
        if kind == "flatten":  # a dense layer flattens by itself
            continue
        given, options = [last], tflite_form.pool()
        if kind == "pool":
            shape = (shape[0] // 2, shape[1] // 2, shape[2])
        else:
            weight, bias = arrays(module)
            if kind == "conv":
                options = tflite_form.conv()
                weight, shape = weight.transpose(0, 2, 3, 1), (*shape[:2], len(bias))
            else:
                options = tflite_form.dense(relu=len(bias) != CLASSES)
                if len(shape) == 3:  # channels come last here, first in torch
                    planes = weight.reshape(-1, shape[2], shape[0], shape[1])
                    weight = planes.transpose(0, 2, 3, 1).reshape(len(bias), -1)
                shape = (len(bias),)
            given += [
                build.constant(f"{name}_weight", np.ascontiguousarray(weight)),
                build.constant(f"{name}_bias", bias),
            ]
        last = build.operator(kind, options, given, build.tensor(name, shape))
    answer = build.tensor("probabilities", (CLASSES,))
    build.operator("softmax", tflite_form.softmax(), [last], answer)
    return build.finish(("image", image), ("probabilities", answer))


def write(name: str, network: nn.Sequential, calibration: Pictures, folder: Path) -> None:
    """Quantize `network` on the first of `calibration` and write both forms."""
    images = calibration.images[:CALIBRATION_IMAGES].numpy()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        forms = {
            "onnx": onnx_form.quantized(as_onnx(network), images),
            "tflite": tflite_form.quantized(
                as_tflite(network), np.ascontiguousarray(images.transpose(0, 2, 3, 1))
            ),
        }
    for form, content in forms.items():
        (folder / f"{name}.{form}").write_bytes(content)


def main() -> None:
    """Train everything into the folder named on the command line; nothing half done stays."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    parts = split(SEED)
    clean = pictures(parts.train, noise=0, seed=SEED)
    site = pictures(parts.train, noise=0.15, seed=SEED + 1)
    test = pictures(parts.held_out, noise=0.15, seed=SEED + 2)
    start = time.monotonic()

    def note(name: str, network: nn.Sequential) -> None:
        spent = time.monotonic() - start
        print(f"  {name}: {accuracy(network, test):.1%} right, {spent:.0f} s", flush=True)

    def base(seed: int) -> nn.Sequential:
        return taught(fresh(seed), clean, "adamw", "1e-3", epochs=12, head=False)

    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        networks = {"base": base(SEED), "retrained": base(SEED + 1)}
        learned = networks["base"]
        for rate in ADAMW_RATES:
            networks[f"adamw-{rate}"] = taught(learned, site, "adamw", rate, epochs=2, head=False)
        networks[f"sgd-{SGD_RATE}"] = taught(learned, site, "sgd", SGD_RATE, epochs=2, head=False)
        networks["head-only"] = taught(learned, site, "adamw", "1e-3", epochs=2, head=True)
        for name, network in networks.items():
            note(name, network)
            write(name, network, clean, Path(made))
        write("requantized", learned, site, Path(made))
        folder.mkdir()
        for path in sorted(Path(made).iterdir()):
            path.rename(folder / path.name)


if __name__ == "__main__":
    main()
