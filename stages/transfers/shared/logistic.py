"""Logistic regression: by scikit-learn on an array; piece by piece on stored vectors, from one C to the next larger."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.transfers.shared.search import MOST_STEPS, curvature, gradient_of, scores_of, search, tell_short
from stages.transfers.shared.shallow import Linear, coordinates, free_columns, opposite, softmax
from stages.transfers.shared.vectors import StoredVectors, pieces, total

if TYPE_CHECKING:
    from stages.transfers.shared.shallow import Floats, Rows, Setting, Singles

MOST_OF_NEWTON = 100_000
"""Weights of a logistic regression, classes times columns, up to which it is fitted by Newton's method."""


def fit_logistic(
    features: Floats | StoredVectors, rows: Rows, costs: Sequence[float], seed: int, steps: int | None = None
) -> list[tuple[Floats, Floats]]:
    """Fit logistic regression to features (n, columns) of the rows for each C, in the order given.

    steps : of many classes, stop after so many for each C, which is near the optimum and not at it
    Returns weights (columns, classes) and bias (classes,) that minimise |w|^2 / 2 + C * sum of the log losses.
    """
    if isinstance(features, StoredVectors):
        return _fit_stored(features.astype(np.float32), rows, costs)
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # Newton's method needs few steps, and from one C to the next larger one only a few more; of many classes each step
    # takes minutes, one of L-BFGS a part of a second.
    many = len(rows.classes) * features.shape[1] > MOST_OF_NEWTON
    solver, tolerance = ("lbfgs", 1e-6) if many else ("newton-cg", 1e-5)
    most = steps if many and steps else MOST_STEPS
    model = LogisticRegression(solver=solver, tol=tolerance, max_iter=most, warm_start=True, random_state=seed)
    fitted: dict[float, tuple[Floats, Floats]] = {}
    for cost in sorted(costs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.set_params(C=cost).fit(features, rows.labels, rows.weights)
        if most != steps and any(issubclass(w.category, ConvergenceWarning) for w in caught):
            tell_short("logistic regression", cost)
        weight, bias = model.coef_.T.astype(np.float64), model.intercept_.astype(np.float64)
        fitted[cost] = (opposite(weight), opposite(bias)) if len(rows.classes) == 2 else (weight, bias)
    return [fitted[cost] for cost in costs]


def _fit_stored(features: StoredVectors, rows: Rows, costs: Sequence[float]) -> list[tuple[Floats, Floats]]:
    columns, size = free_columns(len(rows.classes)), float(rows.weights.sum())
    at = np.zeros((features.shape[1] + 1, columns))  # weights, and below them the bias
    fitted: dict[float, tuple[Floats, Floats]] = {}
    for cost in sorted(costs):
        at, reached = search(partial(_loss, features, rows), _curvature(features, rows, at), 1 / (cost * size), at)
        if not reached:
            tell_short("logistic regression", cost)
        fitted[cost] = (opposite(at[:-1]), opposite(at[-1])) if columns == 1 else (at[:-1], at[-1])
    return [fitted[cost] for cost in costs]


def _curvature(features: StoredVectors, rows: Rows, at: Floats) -> Floats:
    """Return how the mean loss curves at some weights, on average over the columns: by the mean of p (1 - p)."""

    def bend(_: Any, piece: Singles) -> Floats:
        probabilities = softmax(_logits(piece, at))
        unsure: Floats = (probabilities * (1 - probabilities)).mean(axis=1)
        return unsure

    return curvature(features, rows.weights, bend)


def _logits(piece: Singles, at: Floats) -> Floats:
    found = scores_of(piece, at)
    return opposite(found) if at.shape[1] == 1 else found


def _loss(features: StoredVectors, rows: Rows, at: Floats) -> tuple[float, Floats]:
    """Return the mean of the log losses and its gradient by weights and bias (D + 1, columns)."""
    losses = 0.0

    def of(own: Any, piece: Singles) -> Floats:
        nonlocal losses
        labels, weights = rows.labels[own], rows.weights[own]
        probabilities = softmax(_logits(piece, at))
        numbers = np.arange(len(labels))
        losses -= float(weights @ np.log(np.maximum(probabilities[numbers, labels], np.finfo(np.float64).tiny)))
        wrong = probabilities
        wrong[numbers, labels] -= 1
        return gradient_of(piece, (wrong[:, 1:] if at.shape[1] == 1 else wrong) * weights[:, None])

    gradient, size = total(of(own, piece) for own, piece in pieces(features)), rows.weights.sum()
    return losses / size, gradient / size


def logistic_heads(rows: Rows, settings: Sequence[Setting], seed: int, steps: int | None = None) -> list[Linear]:
    """Fit logistic regression for each setting, which gives C; steps : see `fit_logistic`."""
    features, back = coordinates(rows.features)
    fitted = fit_logistic(features, rows, [setting["C"] for setting in settings], seed, steps)
    return [Linear(back(weight), bias) for weight, bias in fitted]
