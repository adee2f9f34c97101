"""Made-up features with a known answer, for the tests of the transfers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from stages.backbones.cut import split
from stages.transfers import Part, TrainingData
from stages.transfers.shared.above import inner_above, lying_above
from tests.backbones.conftest import cells, network, normalised
from tests.transfers.made_up import make_data

RESNET = {"library": "timm", "network": "test_resnet", "classes": 1000, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="session")
def two_classes() -> tuple[TrainingData, Part]:
    """Two classes that lie apart: training data, and a test part."""
    return make_data(["sound", "broken"])


@pytest.fixture(scope="session")
def three_classes() -> tuple[TrainingData, Part]:
    return make_data(["crack", "dust", "sound"])


@pytest.fixture(scope="session")
def shuffled() -> tuple[TrainingData, Part]:
    """Two classes whose labels say nothing about the features."""
    data, test = make_data(["sound", "broken"], apart=0.5, test=600)
    random = np.random.default_rng(1)
    parts = []
    for part in (data.training, data.validation, test):
        labels = random.permutation(part.labels)
        parts.append(Part(part.activations, labels, np.eye(2, dtype=np.float32)[labels], part.groups))
    training, validation, test = parts
    return TrainingData(data.classes, training, validation), test


@pytest.fixture(scope="session")
def dark_cells() -> TrainingData:
    """Real cells at a cut, every other one darkened."""
    whole = network("timm", "test_resnet")
    pixels = cells(36, 64, 3)
    labels = np.arange(36) % 2
    pixels[labels == 1] //= 2
    with torch.no_grad():
        maps = split(whole, "layer3", 64).below(normalised(pixels, [0.5] * 3, [0.5] * 3)).numpy()[:, np.newaxis]

    def part(rows: slice) -> Part:
        return Part(maps[rows], labels[rows], np.eye(2, dtype=np.float32)[labels[rows]], None)

    facts = {"network": RESNET, "cut": "layer3", "image_size": 64}
    return TrainingData(
        ["bright", "dark"],
        part(slice(0, 24)),
        part(slice(24, None)),
        above=lambda: lying_above(copy.deepcopy(whole), RESNET, "layer3", 64, 2),
        inner=lambda layers: inner_above(copy.deepcopy(whole), RESNET, "layer3", layers, 64),
        facts=facts,
    )
