"""L2-SP: fine-tune above the cut, held near the pretrained weights instead of near zero.

Weight decay slowly forgets what was transferred; a penalty on the distance from the starting point (SP) does not. It
takes the place of weight decay, and matters most where labels are few. Li, Grandvalet and Davoine, ICML 2018,
arXiv:1802.01483, section 3.

    runs: {few-labels: {dataset: cells, features: lite0-b4, transfer: {kind: l2_sp, alpha: 0.1, beta: 0.01}}}
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
    """Keys of L2-SP, beside those of fine-tuning."""

    kind: Literal["l2_sp"] = Field(description="fine-tuning, held near the weights that it starts from")
    alpha: float = Field(0.1, ge=0, description="pull of the transferred weights to where they started")
    beta: float = Field(0.01, ge=0, description="pull of the head's weights to zero")
    weight_decay: float = Field(0.0, ge=0, description="pull of all weights to zero, beside the two others")


load = NetworkModel.load


def fit(params: Params, data: TrainingData, seed: int) -> NetworkModel:
    """Train the network above the cut on stored activations; see `train` for what is raised."""

    def begin(network: Above) -> Callable[[], torch.Tensor]:
        import torch

        weights = {n: p for n, p in network.named_parameters() if p.requires_grad}
        start = {n: p.detach().clone() for n, p in weights.items() if not n.startswith("head.")}

        def penalty() -> torch.Tensor:
            # alpha/2 |w - w0|^2 over what was transferred, beta/2 |w|^2 over the head, which started from nothing.
            transferred = [(weights[n] - w0).square().sum() for n, w0 in start.items()]
            head = [p.square().sum() for n, p in weights.items() if n not in start]
            moved = torch.stack(transferred).sum() if transferred else torch.zeros(())
            return params.alpha / 2 * moved + params.beta / 2 * torch.stack(head).sum()

        return penalty

    return train(params, data, seed, begin).model()
