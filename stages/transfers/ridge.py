"""Ridge regression on +1 for a sample's class and -1 for the others: linear least squares with a penalty.

It minimises sum of (y - w x - b)^2 + alpha |w|^2 in closed form; the bias is not penalised. Its scores become
probabilities by Platt scaling (shared/platt.py). The scores out of fold need no further fit: with the hat matrix H,
which maps targets to fitted values, a model fitted without the rows F leaves them the residuals (I - H_FF)^-1 r_F.
Hoerl and Kennard, Technometrics 12, 1970; Cook and Weisberg, Residuals and Influence in Regression, 1982, section 2.2.

    runs: {ridge: {dataset: cells, features: lite0, transfer: {kind: ridge, alpha: [100, 1000, 10000]}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.platt import folds, platt
from stages.transfers.shared.shallow import Linear, ShallowModel, WeightedParams, coordinates, fit_shallow

if TYPE_CHECKING:
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Indices, Rows, Setting

FAMILY = "feature"
VERSION = 1


class Params(WeightedParams):
    """Keys of ridge regression."""

    kind: Literal["ridge"] = Field(description="ridge regression on the classes")
    alpha: OneOrMany[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        [10.0, 100.0, 1000.0, 10000.0], description="penalty on the weights"
    )


load = Linear.load


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    """Fit on feature vectors; raises UserError for a class with a single image."""
    return fit_shallow(params, data, seed, _heads, folded=True)


def _heads(rows: Rows, settings: Sequence[Setting], seed: int) -> list[Linear]:
    features, back = coordinates(rows.features)
    targets = np.where(rows.labels[:, None] == np.arange(len(rows.classes)), 1.0, -1.0)
    parts = [outside for _, outside in folds(rows, seed)]
    center = rows.weights @ features / rows.weights.sum()
    scaled = (features - center) * np.sqrt(rows.weights)[:, None]
    products = scaled.T @ scaled
    heads = []
    for setting in settings:
        weight, bias, scores = solve(scaled, products, targets, rows.weights, setting["alpha"], parts)
        slope, shift = platt(scores, rows.labels, rows.weights)
        heads.append(Linear(slope * back(weight), slope * (bias - center @ weight) + shift))
    return heads


def solve(
    scaled: Floats, products: Floats, targets: Floats, weights: Floats, alpha: float, parts: Sequence[Indices]
) -> tuple[Floats, Floats, Floats]:
    """Return weights (columns, k), bias (k,) for centred features, and for all rows the scores out of fold (n, k).

    scaled : (n, columns) centred features times the root of each row's weight; products : their inner products
    targets : (n, k); weights : (n,); parts : the rows of each fold
    """
    from scipy.linalg import cholesky, solve_triangular

    root, total = np.sqrt(weights), weights.sum()
    bias = weights @ targets / total
    penalised = products.copy()
    penalised[np.diag_indices(len(penalised))] += alpha
    lower = cholesky(penalised, lower=True, overwrite_a=True, check_finite=False)
    half = solve_triangular(lower, scaled.T, lower=True, check_finite=False)  # H is half^T half, and the bias's share
    projected = half @ (root[:, None] * targets)
    weight = solve_triangular(lower, projected, lower=True, trans="T", check_finite=False)
    residuals = root[:, None] * (targets - bias) - half.T @ projected
    scores = np.empty_like(targets)
    half = np.vstack([half, root / np.sqrt(total)])
    for rows in parts:
        part = half[:, rows]
        if len(rows) < len(part):
            without = np.linalg.solve(np.eye(len(rows)) - part.T @ part, residuals[rows])
        else:  # the same by Woodbury's identity, on the columns, however many rows there are
            inner = np.linalg.solve(np.eye(len(part)) - part @ part.T, part @ residuals[rows])
            without = residuals[rows] + part.T @ inner
        scores[rows] = targets[rows] - without / root[rows, None]
    return weight, bias, scores
