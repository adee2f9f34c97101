"""Made-up activations: each class a cloud around a mean of its own, in groups that share a small offset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from stages.params import kind_module
from stages.transfers import Part, TrainingData

WIDTH, VIEWS = 64, 2  # test_vit's width, too: kinds that train a network train its classifier here, cut at pooled
NETWORK = {"library": "timm", "network": "test_vit", "classes": 1000, "mean": [0.5] * 3, "std": [0.5] * 3}


def make_data(classes: list[str], apart: float = 1.5, test: int = 120, width: int = WIDTH) -> tuple[TrainingData, Part]:
    """Return training data (120 and 60 samples) and a test part; views are the same features with a little noise."""
    random = np.random.default_rng(0)
    means = apart * random.standard_normal((len(classes), width))
    offsets = 0.3 * random.standard_normal((12, width))

    def part(count: int) -> Part:
        labels = np.arange(count) % len(classes)
        groups = random.integers(0, 12, count)
        features = means[labels] + offsets[groups] + random.standard_normal((count, width))
        views = features[:, None] + 0.1 * random.standard_normal((count, VIEWS, width))
        targets = np.eye(len(classes), dtype=np.float32)[labels]
        return Part(views.astype(np.float32), labels.astype(np.int64), targets, [f"module {g}" for g in groups])

    return TrainingData(classes, training=part(120), validation=part(60)), part(test)


def fit(kind: str, data: TrainingData, seed: int = 0, **keys: Any) -> Any:
    """Fit a kind of transfer as finetune does, with some keys of params.yaml."""
    module = kind_module("transfers", kind)
    if getattr(module, "STREAMS", False) and data.above is None:
        data = with_network(data, NETWORK, "pooled", 160)
    return module.fit(module.Params.model_validate({"kind": kind, **keys}), data, seed)


def with_network(data: TrainingData, network: dict[str, Any], cut: str, image_size: int, **more: Any) -> TrainingData:
    """Let data be trained on above a cut of a network with random weights, as finetune does."""
    import torch

    from stages.transfers.shared.above import built_above, built_inner

    def seeded(build: Callable[[], Any]) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build()

    facts = {"network": network, "cut": cut, "image_size": image_size}
    return replace(
        data,
        above=lambda: seeded(lambda: built_above(network, cut, image_size, len(data.classes))),
        inner=lambda layers: seeded(lambda: built_inner(network, cut, layers, image_size)),
        facts=facts,
        **more,
    )


def take(part: Part, rows: Any, views: slice = slice(None)) -> Part:
    """Return some samples of a part, perhaps more than once."""
    groups = None if part.groups is None else [part.groups[row] for row in rows]
    return Part(part.activations[rows][:, views], part.labels[rows], part.targets[rows], groups)
