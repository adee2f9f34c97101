"""A linear support vector machine on frozen features: the widest margin between classes.

It minimises |w|^2 / 2 + C * sum of hinge losses max(0, 1 - y (w x + b)). More than two classes: one against the rest.
Margins become probabilities by Platt scaling (shared/platt.py). Cortes and Vapnik, Machine Learning 20, 1995.

Up to some ten thousand rows it is solved on the matrix of their inner products, which costs the same for any number of
features; for more by liblinear, which also penalises the bias (weakly: its constant feature is 10).

    runs: {linear-svm: {dataset: cells, features: lite0, transfer: {kind: linear_svm, C: [0.0001, 0.001, 0.01]}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.platt import calibrate
from stages.transfers.shared.shallow import (
    Linear,
    ShallowModel,
    WeightedParams,
    fit_shallow,
    free_columns,
    inner_products,
    opposite,
)
from stages.transfers.shared.svm import MOST_ROWS, machines

if TYPE_CHECKING:
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Indices, Rows, Setting

FAMILY = "feature"
VERSION = 1


class Params(WeightedParams):
    """Keys of the linear support vector machine."""

    kind: Literal["linear_svm"] = Field(description="a linear support vector machine")
    C: OneOrMany[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        [0.0001, 0.001, 0.01],
        description="cost of a sample on the wrong side of its margin; the larger, the less regularised",
    )


load = Linear.load


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    """Fit on feature vectors; raises UserError for a class with a single image."""
    return fit_shallow(params, data, seed, _heads, folded=True)


def _heads(rows: Rows, settings: Sequence[Setting], seed: int) -> list[Linear]:
    costs = [setting["C"] for setting in settings]
    if len(rows.features) > MOST_ROWS:
        return _many_rows(rows, costs, seed)
    fitted = machines(inner_products(rows.features), rows, costs, seed)
    return [Linear(rows.features.T @ coefficients, bias) for coefficients, bias in fitted]


def _many_rows(rows: Rows, costs: Sequence[float], seed: int) -> list[Linear]:
    def score(inside: Indices, outside: Indices) -> Floats:
        fitted = [_liblinear(rows, inside, cost, seed) for cost in costs]
        return np.stack([head.logits(rows.features[outside]) for head in fitted])

    heads = []
    for cost, (slope, shift) in zip(costs, calibrate(rows, seed, score), strict=True):
        head = _liblinear(rows, np.arange(len(rows.features)), cost, seed)
        heads.append(Linear(slope * head.weight, slope * head.bias + shift))
    return heads


def _liblinear(rows: Rows, inside: Indices, cost: float, seed: int) -> Linear:
    from sklearn.svm import LinearSVC

    columns = free_columns(len(rows.classes))
    machine = LinearSVC(C=cost, loss="hinge", intercept_scaling=10, random_state=seed, max_iter=2000)
    machine.fit(rows.features[inside], rows.labels[inside], rows.weights[inside])
    weight, bias = machine.coef_.T.astype(np.float64), machine.intercept_.astype(np.float64)
    return Linear(opposite(weight), opposite(bias)) if columns == 1 else Linear(weight, bias)
