"""Fine-tuning above the cut: the layers above it go on learning from where pretraining left them.

What lies below stays frozen, so its output is computed once and stored; an epoch costs what lies above alone. How it
is trained is told in shared/training.py. Yosinski et al., NeurIPS 2014, arXiv:1411.1792, on how much the layers carry
over; Kumar et al., ICLR 2022, arXiv:2202.10054, on starting from a linear probe.

    runs: {finetune: {dataset: cells, features: lite0-b4, transfer: {kind: fine_tune, epochs: 12}}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.transfers.shared.network import NetworkModel
from stages.transfers.shared.training import TrainingParams, train
from stages.transfers.shared.training import problem as problem

if TYPE_CHECKING:
    from stages.transfers import TrainingData

FAMILY = "parameter"
VERSION = 1
STREAMS = True


class Params(TrainingParams):
    """Keys of fine-tuning."""

    kind: Literal["fine_tune"] = Field(description="the layers above the cut, trained in torch")


load = NetworkModel.load


def fit(params: Params, data: TrainingData, seed: int) -> NetworkModel:
    """Train the network above the cut on stored activations; see `train` for what is raised."""
    return train(params, data, seed).model()
