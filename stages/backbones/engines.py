"""What runs the frozen part of a network: torch on a GPU or a CPU.

The environment says where: TRANSFER_DEVICE (cpu, cuda), TRANSFER_ENGINE (onnxruntime, torch), TRANSFER_THREADS.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.backbones.backbone import Backbone
from stages.params import Features

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.backbones.grey import FromPixels


class TorchEngine:
    """Runs the frozen part in torch."""

    def __init__(self, backbone: Backbone, features: Features, device: str):
        self.batch_size = 32
        self.calls = 1
        self._backbone, self._features, self._device = backbone, features, device
        self._names = (*features.all_layers, *(["logits"] if features.logits else []))
        self._parts: dict[tuple[int, int], FromPixels] = {}
        self._lock = Lock()

    @property
    def identity(self) -> dict[str, str]:
        return {"engine": "torch", "device": self._device, "precision": "float32", "torch": version("torch")}

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        import torch

        with self._lock, torch.inference_mode():
            count, channels, _, size = images.shape
            part = self._part(size, channels)
            padded = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
            padded[:count] = images
            outputs = part(torch.from_numpy(padded).to(self._device))
        return {n: o[:count].float().cpu().contiguous().numpy() for n, o in zip(self._names, outputs, strict=True)}

    def operations(self, size: int, channels: int) -> int:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self._part(size, channels)(torch.zeros(1, channels, size, size, dtype=torch.uint8))
        return int(counter.get_total_flops() // 2)

    def _part(self, size: int, channels: int) -> FromPixels:
        from stages.backbones.cut import taken
        from stages.backbones.grey import from_pixels

        if (size, channels) not in self._parts:
            facts, f = self._backbone.facts, self._features
            part = taken(self._backbone.network, f.cut, f.layers, f.logits, size)
            self._parts[size, channels] = from_pixels(part, facts["mean"], facts["std"], channels, size).to(
                self._device
            )
        return self._parts[size, channels]


class Pixels:
    """cut: image: no network, the images as they are."""

    def __init__(self) -> None:
        self.batch_size = 32
        self.calls = 1
        self.identity = {"engine": "none"}

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        return {"image": images}

    def operations(self, size: int, channels: int) -> int:
        return 0


def open_engine(backbone: Backbone, features: Features, cache: Path | None = None) -> TorchEngine | Pixels:
    """Open an engine for a backbone and an entry of `features`; first working version, ONNX Runtime follows."""
    if features.cut == "image":
        return Pixels()
    return TorchEngine(backbone, features, os.environ.get("TRANSFER_DEVICE", "cpu"))
