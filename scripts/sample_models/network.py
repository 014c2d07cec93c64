"""The network, and how it learns: three convolutions and one dense layer, 11,914 weights."""

import copy
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sample_models.digits import CLASSES, Digits

INK = 16.0
"""The darkest pixel: images are divided by it inside the network."""

BATCH = 32

Network: TypeAlias = nn.Sequential

Weights = dict[str, NDArray[np.float32]]
"""`conv1`..`conv3` (out, in, 3, 3), `dense` (classes, height, width, channels), and `*_bias`."""


def repeatable() -> None:
    """Make training give the same weights on every run of this machine."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def fresh(seed: int) -> Network:
    """Return an untrained network: float32 (batch, 1, 8, 8), 0-1, to logits (batch, 10)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, CLASSES),
    )


def fit(
    start: Network,
    digits: Digits,
    *,
    epochs: int,
    rate: float,
    seed: int,
    report: Callable[[int, float], None],
) -> Network:
    """Return `start` trained further on `digits`; `start` itself stays as it was."""
    network = copy.deepcopy(start)
    images = torch.from_numpy(digits.images.transpose(0, 3, 1, 2) / np.float32(INK))
    labels = torch.from_numpy(digits.labels)
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        report(epoch + 1, total / len(labels))
    return network


def weights_of(network: Network) -> Weights:
    """Return the weights for images of 0-16: the first convolution takes the division in."""
    conv1, conv2, conv3, dense = (network[place] for place in (0, 2, 5, 9))
    named = {"conv1": conv1, "conv2": conv2, "conv3": conv3, "dense": dense}
    weights = {name: layer.weight.detach().numpy().copy() for name, layer in named.items()}
    weights |= {f"{name}_bias": layer.bias.detach().numpy().copy() for name, layer in named.items()}
    weights["conv1"] /= np.float32(INK)
    weights["dense"] = weights["dense"].reshape(CLASSES, 32, 2, 2).transpose(0, 2, 3, 1)
    return weights
