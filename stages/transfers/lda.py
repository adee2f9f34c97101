"""Linear discriminant analysis with a shrunk covariance: each class a normal cloud, all of one shape.

log P(class) + log N(x; mean of the class, S) is linear in x. With more features than samples S would be singular;
shrinking it towards a sphere mends that, and Ledoit and Wolf's formula says how far (`shrinkage: auto`), without a
search. Ledoit and Wolf, Journal of Multivariate Analysis 88, 2004.

The posterior of a model with thousands of features is far too sure of itself, so the discriminants go through Platt
scaling (shared/platt.py), as margins do.

    runs: {lda: {dataset: cells, features: lite0, transfer: {kind: lda}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from stages.transfers.shared.lda import Discriminants, Shrinkage, shrinkage_field
from stages.transfers.shared.platt import calibrate
from stages.transfers.shared.shallow import Linear, ShallowModel, WeightedParams, coordinates, fit_shallow
from stages.transfers.shared.vectors import linear_scores

if TYPE_CHECKING:
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Indices, Rows, Setting

FAMILY = "feature"
VERSION = 1
PIECES = True


class Params(WeightedParams):
    """Keys of linear discriminant analysis."""

    kind: Literal["lda"] = Field(description="linear discriminant analysis with a shrunk covariance")
    shrinkage: Shrinkage = shrinkage_field()


load = Linear.load


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    """Fit on feature vectors; raises UserError for a class with a single image."""
    return fit_shallow(params, data, seed, _heads, folded=True)


def _heads(rows: Rows, settings: Sequence[Setting], seed: int) -> list[Linear]:
    features, back = coordinates(rows.features)
    discriminants = Discriminants(features, rows.features.shape[1], rows.labels, rows.weights)
    shrinkages = [setting["shrinkage"] for setting in settings]

    def score(_: Indices, outside: Indices) -> Floats:
        return linear_scores(features, outside, discriminants.fit(outside, shrinkages))

    everything = discriminants.fit(np.arange(0), shrinkages)
    return [
        Linear(slope * back(weight), slope * bias + shift)
        for (weight, bias), (slope, shift) in zip(everything, calibrate(rows, seed, score), strict=True)
    ]
