"""Logistic regression on frozen features: the linear probe.

It minimises |w|^2 / 2 + C * sum of log losses (softmax over more than two classes); the bias is not penalised. The
smaller C, the simpler the model.

    runs: {probe: {dataset: cells, features: lite0, transfer: {kind: logistic, C: [0.001, 0.01, 0.1]}}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.logistic import logistic_heads
from stages.transfers.shared.shallow import Linear, ShallowModel, WeightedParams, fit_shallow

if TYPE_CHECKING:
    from stages.transfers import TrainingData

FAMILY = "feature"
VERSION = 1
PIECES = True


class Params(WeightedParams):
    """Keys of logistic regression."""

    kind: Literal["logistic"] = Field(description="logistic regression, the linear probe")
    C: OneOrMany[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        [0.0001, 0.001, 0.01, 0.1, 1.0],
        description="how much the samples count against the penalty on the weights; the larger, the less regularised",
    )


load = Linear.load


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    """Fit on feature vectors; raises UserError for a class weight that names no class."""
    return fit_shallow(params, data, seed, logistic_heads)
