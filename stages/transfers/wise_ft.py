"""WiSE-FT: fine-tune above the cut, then go back part of the way to where it started.

Of the weights at the start w0 (the linear probe on what was transferred) and at the end w1 the model has
(1 - alpha) w0 + alpha w1, batch norm's statistics included; alpha is chosen on validation. What was transferred is
forgotten less, which shows on images unlike those of training. Wortsman et al., CVPR 2022, arXiv:2109.01903, section 3.

    runs: {wise: {dataset: cells, features: lite0-b4, transfer: {kind: wise_ft, alpha: [0.5, 1.0]}}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.network import NetworkModel
from stages.transfers.shared.training import TrainingParams, mean_state, train
from stages.transfers.shared.training import problem as problem

if TYPE_CHECKING:
    from stages.transfers import TrainingData

FAMILY = "parameter"
VERSION = 1
STREAMS = True


class Params(TrainingParams):
    """Keys of WiSE-FT, beside those of fine-tuning."""

    kind: Literal["wise_ft"] = Field(description="fine-tuning, then part of the way back to the start")
    alpha: OneOrMany[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.2, 0.4, 0.6, 0.8, 1.0],
        description="share of the fine-tuned weights in the model, 0 being the start; of a list the best on validation",
    )


load = NetworkModel.load


def fit(params: Params, data: TrainingData, seed: int) -> NetworkModel:
    """Train the network above the cut on stored activations; see `train` for what is raised."""
    trained = train(params, data, seed)
    found = [trained.validate(mean_state([trained.start, trained.chosen], [1 - a, a])) for a in params.alpha]
    best = int(np.argmin([row["validation_log_loss"] for row in found]))
    alpha = params.alpha[best]
    arrays = mean_state([trained.start, trained.final], [1 - alpha, alpha])
    return trained.model(arrays, found[best]["temperature"], alpha=alpha)
