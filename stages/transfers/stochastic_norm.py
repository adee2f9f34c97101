"""Stochastic normalisation: fine-tune above the cut, with batch norms that by chance use their moving statistics.

In each step each channel of a batch norm is normalised either by the batch's statistics or by the moving ones, which
know what was transferred. Kou, You, Long and Wang, NeurIPS 2020, section 3.2, equation 5.

    runs: {few-labels: {dataset: cells, features: lite0-b4, transfer: {kind: stochastic_norm, probability: 0.5}}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stages.transfers.shared.network import NetworkModel
from stages.transfers.shared.training import TrainingParams, train
from stages.transfers.shared.training import problem as problem

if TYPE_CHECKING:
    from stages.transfers import TrainingData
    from stages.transfers.shared.above import Above

FAMILY = "parameter"
VERSION = 1
STREAMS = True


class Params(TrainingParams):
    """Keys of stochastic normalisation, beside those of fine-tuning."""

    kind: Literal["stochastic_norm"] = Field(description="fine-tuning, with batch norms that use either statistics")
    probability: float = Field(0.5, ge=0, le=1, description="share of channels that a step normalises by the batch")


load = NetworkModel.load


def fit(params: Params, data: TrainingData, seed: int) -> NetworkModel:
    """Train the network above the cut on stored activations; see `train` for what is raised."""

    def begin(network: Above) -> None:
        import torch
        from torch import nn
        from torch.nn.functional import batch_norm

        def normalised(module: Any, maps: torch.Tensor) -> torch.Tensor:
            mean, variance = module.running_mean.clone(), module.running_var.clone()
            by_batch = batch_norm(
                maps, module.running_mean, module.running_var, None, None, True, module.momentum, module.eps
            )
            by_moving = batch_norm(maps, mean, variance, None, None, False, 0.0, module.eps)
            drawn = (torch.rand(maps.shape[1]) < params.probability).to(maps.device).view(1, -1, 1, 1)
            return torch.where(drawn, by_batch, by_moving) * module.weight.view(1, -1, 1, 1) + module.bias.view(
                1, -1, 1, 1
            )

        for module in network.modules():
            if not isinstance(module, nn.BatchNorm2d):
                continue

            def forward(maps: torch.Tensor, module: Any = module, plain: Any = module.forward) -> torch.Tensor:
                if not module.training:
                    return plain(maps)
                found = normalised(module, maps)
                for after in ("drop", "act"):  # timm's batch norms have an activation in them
                    found = getattr(module, after)(found) if hasattr(module, after) else found
                return found

            module.forward = forward

    return train(params, data, seed, begin).model()
