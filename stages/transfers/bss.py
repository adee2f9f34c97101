"""BSS: fine-tune above the cut, with what carries least over to the new task held small.

The features of a batch are a matrix; directions in which it hardly varies (small singular values) tell little about the
new task, and clinging to them is what negative transfer is. Their squares are added to the loss, so that they fade.
Meant for few labels. Chen et al., NeurIPS 2019, "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral
Shrinkage for Safe Transfer Learning", equations 4 and 5.

    runs: {few-labels: {dataset: cells, features: lite0-b3, transfer: {kind: bss, eta: 0.001}}}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.transfers.shared.network import NetworkModel
from stages.transfers.shared.training import TrainingParams, train
from stages.transfers.shared.training import problem as problem

if TYPE_CHECKING:
    import torch

    from stages.transfers import TrainingData
    from stages.transfers.shared.above import Above

FAMILY = "parameter"
VERSION = 1
STREAMS = True


class Params(TrainingParams):
    """Keys of BSS, beside those of fine-tuning."""

    kind: Literal["bss"] = Field(description="fine-tuning, in which features of little use fade")
    eta: float = Field(0.001, ge=0, description="weight of the penalty")
    smallest: int = Field(1, ge=1, description="how many of a batch's singular values are penalised, from the smallest")


load = NetworkModel.load


def fit(params: Params, data: TrainingData, seed: int) -> NetworkModel:
    """Train the network above the cut on stored activations; see `train` for what is raised."""

    def begin(_: Above) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda features: params.eta * shrinkage(features, params.smallest)

    return train(params, data, seed, begin).model()


def shrinkage(features: torch.Tensor, smallest: int) -> torch.Tensor:
    """Return the sum of squares of the smallest singular values of a batch of features (B, D).

    They are the eigenvalues of the smaller of the two Gram matrices, which a step can afford.
    """
    import torch

    gram = features @ features.T if len(features) <= features.shape[1] else features.T @ features
    squares: torch.Tensor = torch.linalg.eigvalsh(gram)
    return squares[:smallest].sum()
