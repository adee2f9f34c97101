"""DELTA: fine-tune above the cut, holding what each layer gives near what it gave at the start.

Not the weights are held, as in L2-SP, but the maps: of each image, each layer's map near the one that the network gives
at its start. Li, Xiong, Wang, Rao, Liu, Chen and Huan, ICLR 2019, arXiv:1901.09229, section 3.2, equations 3, 4: with
equal weights for all channels.

    runs: {few-labels: {dataset: cells, features: lite0-b4, transfer: {kind: delta, alpha: 0.1, beta: 0.01}}}
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

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
    """Keys of DELTA, beside those of fine-tuning."""

    kind: Literal["delta"] = Field(description="fine-tuning, held near the maps that it starts from")
    alpha: float = Field(0.1, ge=0, description="pull of each layer's maps to those at the start")
    beta: float = Field(0.01, ge=0, description="pull of the head's weights to zero")
    weight_decay: float = Field(0.0, ge=0, description="pull of all weights to zero, beside the two others")


load = NetworkModel.load


def fit(params: Params, data: TrainingData, seed: int) -> NetworkModel:
    """Train the network above the cut on stored activations; see `train` for what is raised."""

    def begin(network: Above) -> Callable[[], torch.Tensor]:
        import torch

        start = copy.deepcopy(network).eval().requires_grad_(False)
        maps, kept = _watch(network), _watch(start)
        given: list[torch.Tensor] = []
        network.register_forward_pre_hook(lambda _, arguments: given.__setitem__(slice(None), arguments))

        def penalty() -> torch.Tensor:
            with torch.no_grad():
                start(given[0])
            # alpha/2 of the squared distance of maps, in the mean over places and images; beta/2 |w|^2 over the head.
            moved = [(maps[n] - kept[n]).square().sum() / (len(given[0]) * maps[n][0, 0].numel()) for n in kept]
            head = sum(p.square().sum() for p in network.head.parameters())
            return params.alpha / 2 * torch.stack(moved).sum() + params.beta / 2 * torch.as_tensor(head)

        return penalty

    return train(params, data, seed, begin).model()


def _watch(network: Above) -> dict[str, torch.Tensor]:
    """Return a dictionary that holds the last map (B, C, H, W) at the end of each layer, once there is one."""
    found: dict[str, torch.Tensor] = {}
    modules = dict(network.named_modules())
    for layer, parameters in network.groups().items():

        def note(_: Any, __: Any, output: torch.Tensor, layer: str = layer) -> None:
            if output.ndim == 4:
                found[layer] = output

        modules[parameters[-1].rpartition(".")[0]].register_forward_hook(note)
    return found
