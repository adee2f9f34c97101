"""Linear discriminant analysis as a reduction: from thousands of features to one score per class, then a linear probe.

The probe is logistic regression on the scores, each with a weight of its own. It is trained on scores that each sample
got from discriminants that had not seen it, nor any sample of its group: on those that had seen it the classes lie
apart as they never will again. Shrinkage as in lda.py.

    runs: {lda-probe: {dataset: cells, features: lite0, transfer: {kind: lda_probe, C: [0.1, 1, 10]}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.lda import Discriminants, Shrinkage, shrinkage_field
from stages.transfers.shared.logistic import fit_logistic
from stages.transfers.shared.platt import out_of_fold
from stages.transfers.shared.shallow import Linear, ShallowModel, WeightedParams, coordinates, fit_shallow
from stages.transfers.shared.vectors import linear_scores

if TYPE_CHECKING:
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Indices, Rows, Setting

FAMILY = "feature"
VERSION = 1
PIECES = True


class Params(WeightedParams):
    """Keys of a linear probe on linear discriminants."""

    kind: Literal["lda_probe"] = Field(description="linear discriminant analysis as a reduction, then a linear probe")
    shrinkage: Shrinkage = shrinkage_field()
    C: OneOrMany[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        [1.0],
        description="how much samples count against the probe's penalty; the larger, the less regularised",
    )


load = Linear.load


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    """Fit on feature vectors; raises UserError for a class with a single image."""
    return fit_shallow(params, data, seed, _heads, folded=True)


def _heads(rows: Rows, settings: Sequence[Setting], seed: int) -> list[Linear]:
    features, back = coordinates(rows.features)
    discriminants = Discriminants(features, rows.features.shape[1], rows.labels, rows.weights)
    shrinkages = list(dict.fromkeys(setting["shrinkage"] for setting in settings))

    def axes(outside: Indices) -> list[tuple[Floats, Floats]]:
        return [_axes(weight, bias) for weight, bias in discriminants.fit(outside, shrinkages)]

    def score(_: Indices, outside: Indices) -> Floats:
        return linear_scores(features, outside, axes(outside))

    heads = {}
    reductions = zip(shrinkages, axes(np.arange(0)), out_of_fold(rows, seed, score), strict=True)
    for shrinkage, (weight, bias), scores in reductions:
        share = rows.weights / rows.weights.sum()
        spread = np.sqrt(share @ np.square(scores - share @ scores)) + np.finfo(np.float64).tiny
        costs = sorted({setting["C"] for setting in settings if setting["shrinkage"] == shrinkage})
        for cost, (on_scores, shift) in zip(costs, fit_logistic(scores / spread, rows, costs, seed), strict=True):
            probe = on_scores / spread[:, None]  # (axes, classes)
            heads[shrinkage, cost] = Linear(back(weight @ probe), bias @ probe + shift)
    return [heads[setting["shrinkage"], setting["C"]] for setting in settings]


def _axes(weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """Return the scores of the probe: one per class, their mean taken off; of two classes the one difference."""
    if len(bias) == 2:
        return weight[:, 1:] - weight[:, :1], bias[1:] - bias[:1]
    return weight - weight.mean(axis=1, keepdims=True), bias - bias.mean()
