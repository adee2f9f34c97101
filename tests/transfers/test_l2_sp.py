"""L2-SP against plain fine-tuning, which it is where nothing pulls, and against its own limit, where nothing moves."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from stages.backbones.cut import split
from stages.transfers import Part, TrainingData
from stages.transfers.shared.above import lying_above
from tests.backbones.conftest import cells, network, normalised
from tests.transfers.made_up import fit

FACTS = {"library": "timm", "network": "test_resnet", "classes": 1000, "mean": [0.5] * 3, "std": [0.5] * 3}
KEYS: dict[str, Any] = {"epochs": 2, "batch_size": 12, "average": 0.0, "clip": 0.0, "layer_decay": 1.0}


@pytest.fixture(scope="module")
def data() -> TrainingData:
    """Real cells at a cut, every other one darkened."""
    whole = network("timm", "test_resnet")
    pixels = cells(36, 64, 3)
    labels = np.arange(36) % 2
    pixels[labels == 1] //= 2
    with torch.no_grad():
        maps = split(whole, "layer3", 64).below(normalised(pixels, [0.5] * 3, [0.5] * 3)).numpy()[:, np.newaxis]

    def part(rows: slice) -> Part:
        return Part(maps[rows], labels[rows], np.eye(2, dtype=np.float32)[labels[rows]], None)

    facts = {"network": FACTS, "cut": "layer3", "image_size": 64}
    above = lambda: lying_above(copy.deepcopy(whole), FACTS, "layer3", 64, 2)  # noqa: E731
    return TrainingData(["bright", "dark"], part(slice(0, 24)), part(slice(24, None)), above, facts)


def test_where_nothing_pulls_it_is_plain_fine_tuning_bit_for_bit(data: TrainingData) -> None:
    plain = fit("fine_tune", data, **KEYS, weight_decay=0.0)
    found = fit("l2_sp", data, **KEYS, alpha=0.0, beta=0.0)
    assert found.history == plain.history
    assert all(np.array_equal(found.arrays[name], array) for name, array in plain.arrays.items())


def test_the_harder_it_pulls_the_nearer_the_weights_stay_to_where_they_started(data: TrainingData) -> None:
    assert data.above is not None
    start = {n: p.detach().numpy() for n, p in data.above().named_parameters() if not n.startswith("head")}

    def moved(alpha: float) -> float:
        model = fit("l2_sp", data, **{**KEYS, "epochs": 10}, alpha=alpha, learning_rate=0.003, optimizer="sgd")
        return float(sum(np.square(model.arrays[n] - w).sum() for n, w in start.items()) ** 0.5)

    distances = [moved(alpha) for alpha in (0.0, 20.0, 100.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.5 * distances[0]


def test_one_step_is_that_of_the_equation(data: TrainingData) -> None:
    """From the start only the head's pull has a gradient: beta w, so that SGD moves it by rate * beta * w more."""
    keys = {
        **KEYS,
        "epochs": 1,
        "batch_size": 24,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "warmup": 0.0,
        "refit": False,
    }
    plain = fit("fine_tune", data, **keys, weight_decay=0.0)
    found = fit("l2_sp", data, **keys, alpha=5.0, beta=0.5)
    body = [n for n in plain.arrays if n.startswith("body")]
    assert all(np.allclose(found.arrays[n], plain.arrays[n], atol=1e-6) for n in body)
    frozen = fit("fine_tune", data, **{**keys, "learning_rate": 1e-12}, weight_decay=0.0)  # the head as it starts
    step = found.arrays["head.weight"] - plain.arrays["head.weight"]
    # Nesterov's first step is (1 + momentum) times the gradient.
    np.testing.assert_allclose(step, -0.1 * 1.9 * 0.5 * frozen.arrays["head.weight"], rtol=1e-3, atol=1e-7)
