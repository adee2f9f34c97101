"""The small convolutional network of the textbooks, for what a transfer must beat: nothing in it was learnt elsewhere.

Two 3 x 3 convolutions of 32 and 64 channels, each with ReLU and 2 x 2 pooling, a hidden layer of 1,024 units with
dropout of one half, and a classifier. It takes images of any size from 4 pixels on: before the hidden layer the map is
averaged down to 7 x 7, as large as it is for the 28 x 28 digits that the network is taught with.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

SIDE = 7
"""Of the map that the hidden layer reads."""


def small_cnn(classes: int = 10) -> nn.Sequential:
    """Return the network with torch's own initialisation: images (B, 3, S, S) -> logits (B, classes)."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 32, 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("average", nn.AdaptiveAvgPool2d(SIDE)),
        ("flatten", nn.Flatten()),
        ("hidden", nn.Linear(64 * SIDE**2, 1024)),
        ("relu3", nn.ReLU()),
        ("dropout", nn.Dropout(0.5)),
        ("classifier", nn.Linear(1024, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))
