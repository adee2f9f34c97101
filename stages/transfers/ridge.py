"""Ridge regression on +1 for a sample's class and -1 for the others: linear least squares with a penalty.

It minimises sum of (y - w x - b)^2 + alpha |w|^2 in closed form; the bias is not penalised. Its scores become
probabilities by Platt scaling (shared/platt.py). The scores out of fold need no further fit: with the hat matrix H,
which maps targets to fitted values, a model fitted without the rows F leaves them the residuals (I - H_FF)^-1 r_F.
Of stored rows, which are many, sums are kept for each fold, and one without a fold is fitted on what is left of them.
Hoerl and Kennard, Technometrics 12, 1970; Cook and Weisberg, Residuals and Influence in Regression, 1982, section 2.2.

    runs: {ridge: {dataset: cells, features: lite0, transfer: {kind: ridge, alpha: [100, 1000, 10000]}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.platt import folds, platt
from stages.transfers.shared.shallow import Linear, ShallowModel, WeightedParams, coordinates, fit_shallow
from stages.transfers.shared.vectors import StoredVectors, linear_scores, pieces, total

if TYPE_CHECKING:
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Indices, Rows, Setting

FAMILY = "feature"
VERSION = 1
PIECES = True


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
    if isinstance(features, StoredVectors):
        return _of_sums(features, rows, settings, seed)
    targets = _targets(rows)
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


@dataclass(frozen=True)
class _Sums:
    """Sums over rows x (columns,) with targets y (k,) that count w: of w, w x, w y, w x x^T and w x y^T."""

    weight: Floats
    features: Floats
    targets: Floats
    products: Floats
    crossed: Floats

    @classmethod
    def of(cls, features: StoredVectors, rows: Rows, own: Indices) -> _Sums:
        """Sum over some of the rows."""

        def of_piece(at: Any, piece: Floats) -> _Sums:
            weights, targets = rows.weights[at][:, None], _targets(rows, at)
            scaled, weighted = np.sqrt(weights) * piece, weights * piece
            sums = weights.sum(axis=0), weighted.sum(axis=0), (weights * targets).sum(axis=0)
            return cls(*sums, scaled.T @ scaled, weighted.T @ targets)

        return total(of_piece(at, piece) for at, piece in pieces(features, own))

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def solve(self, alpha: float) -> tuple[Floats, Floats]:
        """Return weights (columns, k) and bias (k,) of the ridge regression on these rows."""
        from scipy.linalg import solve

        center, level = self.features / self.weight, self.targets / self.weight
        curvature = self.products - np.outer(self.features, center)
        curvature[np.diag_indices(len(curvature))] += alpha
        weight = solve(curvature, self.crossed - np.outer(self.features, level), assume_a="pos", overwrite_a=True)
        return weight, level - center @ weight


def _of_sums(features: StoredVectors, rows: Rows, settings: Sequence[Setting], seed: int) -> list[Linear]:
    """Fit stored rows: a model without a fold's rows is that of all sums but theirs."""
    parts = [outside for _, outside in folds(rows, seed)]
    of_parts = [_Sums.of(features, rows, part) for part in parts]
    everything = total(of_parts)
    alphas = [setting["alpha"] for setting in settings]
    scores = np.empty((len(alphas), len(rows.labels), len(rows.classes)))
    for part, own in zip(parts, of_parts, strict=True):
        scores[:, part] = linear_scores(features, part, [(everything - own).solve(alpha) for alpha in alphas])
    heads = []
    for alpha, found in zip(alphas, scores, strict=True):
        weight, bias = everything.solve(alpha)
        slope, shift = platt(found, rows.labels, rows.weights)
        heads.append(Linear(slope * weight, slope * bias + shift))
    return heads


def _targets(rows: Rows, own: Any = slice(None)) -> Floats:
    return np.where(rows.labels[own, None] == np.arange(len(rows.classes)), 1.0, -1.0)


def solve(
    scaled: Floats, products: Floats, targets: Floats, weights: Floats, alpha: float, parts: Sequence[Indices]
) -> tuple[Floats, Floats, Floats]:
    """Return weights (columns, k), bias (k,) for centred features, and for all rows the scores out of fold (n, k).

    scaled : (n, columns) centred features times the root of each row's weight; products : their inner products
    targets : (n, k); weights : (n,); parts : the rows of each fold
    """
    from scipy.linalg import cholesky, solve_triangular

    root, size = np.sqrt(weights), weights.sum()
    bias = weights @ targets / size
    penalised = products.copy()
    penalised[np.diag_indices(len(penalised))] += alpha
    lower = cholesky(penalised, lower=True, overwrite_a=True, check_finite=False)
    half = solve_triangular(lower, scaled.T, lower=True, check_finite=False)  # H is half^T half, and the bias's share
    projected = half @ (root[:, None] * targets)
    weight = solve_triangular(lower, projected, lower=True, trans="T", check_finite=False)
    residuals = root[:, None] * (targets - bias) - half.T @ projected
    scores = np.empty_like(targets)
    half = np.vstack([half, root / np.sqrt(size)])
    for rows in parts:
        part = half[:, rows]
        if len(rows) < len(part):
            without = np.linalg.solve(np.eye(len(rows)) - part.T @ part, residuals[rows])
        else:  # the same by Woodbury's identity, on the columns, however many rows there are
            inner = np.linalg.solve(np.eye(len(part)) - part @ part.T, part @ residuals[rows])
            without = residuals[rows] + part.T @ inner
        scores[rows] = targets[rows] - without / root[rows, None]
    return weight, bias, scores
