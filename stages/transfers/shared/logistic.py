"""Logistic regression: by scikit-learn on an array, piece by piece on stored vectors.

Stored vectors are many, and each look at the loss reads them all: as few looks as possible are what counts. So L-BFGS
does not search the weights w but v = L^T w, where L L^T is about how the loss curves at the weights that it begins at:
in v it curves about the same in all directions. From one C to the next larger one it goes on, with another L.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import warn
from stages.transfers.shared.shallow import Linear, coordinates, free_columns, opposite, softmax
from stages.transfers.shared.vectors import StoredVectors, pieces, total

if TYPE_CHECKING:
    from stages.transfers.shared.shallow import Floats, Rows, Setting, Singles

MOST_OF_NEWTON = 100_000
"""Weights of a logistic regression, classes times columns, up to which it is fitted by Newton's method."""
MOST_STEPS = 1000
"""Steps after which a search is given up, which is told."""
MOST_COLUMNS = 8192
"""Columns of stored vectors up to which a curvature is computed whole: it has half a GB. Of more, its diagonal is."""
NEAR = 1e-5
"""How long the gradient by v may still be, for a mean loss in nats: about how far from the optimum v then is."""
LEAST_UNSURE = 1e-4
"""What p (1 - p) counts as at least where it is asked how the loss curves."""


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
            _tell_short(cost)
        weight, bias = model.coef_.T.astype(np.float64), model.intercept_.astype(np.float64)
        fitted[cost] = (opposite(weight), opposite(bias)) if len(rows.classes) == 2 else (weight, bias)
    return [fitted[cost] for cost in costs]


def _tell_short(cost: float) -> None:
    warn(f"logistic regression with C {cost:g} stopped short of its optimum; a smaller C is easier to fit")


def _fit_stored(features: StoredVectors, rows: Rows, costs: Sequence[float]) -> list[tuple[Floats, Floats]]:
    from scipy.optimize import minimize

    width, columns, size = features.shape[1], free_columns(len(rows.classes)), float(rows.weights.sum())
    at = np.zeros((width + 1, columns))  # weights, and below them the bias
    fitted: dict[float, tuple[Floats, Floats]] = {}
    for cost in sorted(costs):
        penalty = np.append(np.full(width, 1 / (cost * size)), 0)[:, None]
        even = _Preconditioner.of(_curvature(features, rows, at) / size, penalty[:, 0])

        def loss(searched: Floats, even: _Preconditioner = even, penalty: Floats = penalty) -> tuple[float, Floats]:
            at = even.back(searched.reshape(-1, columns))
            found, slope = _loss(features, rows, at)
            slope = even.slope(slope / size + penalty * at)
            return found / size + float((penalty * np.square(at)).sum()) / 2, slope.ravel()

        limits = {"maxiter": MOST_STEPS, "maxcor": 20, "gtol": NEAR, "ftol": 1e-9}
        result = minimize(loss, even.there(at).ravel(), jac=True, method="L-BFGS-B", options=limits)
        if result.nit >= MOST_STEPS:
            _tell_short(cost)
        at = even.back(result.x.reshape(-1, columns))
        fitted[cost] = (opposite(at[:-1]), opposite(at[-1])) if columns == 1 else (at[:-1], at[-1])
    return [fitted[cost] for cost in costs]


@dataclass(frozen=True)
class _Preconditioner:
    """Coordinates v = L^T w in which a curvature L L^T is that of a ball; root : L (D + 1, D + 1), or its diagonal."""

    root: Floats

    @classmethod
    def of(cls, curvature: Floats, penalty: Floats) -> _Preconditioner:
        """Take a curvature (D + 1, D + 1), or its diagonal, and what a penalty adds (D + 1,)."""
        from scipy.linalg import LinAlgError, cholesky

        if curvature.ndim == 1:
            return cls(np.sqrt(curvature + penalty)[:, None])
        # Columns that depend on each other leave directions without any curvature but the penalty's, and rounding may
        # take even that. A little more of a curvature costs a few steps at most.
        more = 1e-6 * np.trace(curvature) / len(curvature)
        while True:
            with suppress(LinAlgError):
                return cls(cholesky(curvature + np.diag(penalty + more), lower=True, overwrite_a=True))
            more *= 10

    def there(self, weight: Floats) -> Floats:
        """Return v (D + 1, k) for w."""
        return self.root * weight if self.root.shape[1] == 1 else self.root.T @ weight

    def back(self, searched: Floats) -> Floats:
        """Return w (D + 1, k) for v."""
        return searched / self.root if self.root.shape[1] == 1 else self._solved(searched, "T")

    def slope(self, slope: Floats) -> Floats:
        """Return the gradient by v (D + 1, k) for that by w."""
        return slope / self.root if self.root.shape[1] == 1 else self._solved(slope, "N")

    def _solved(self, right: Floats, transposed: str) -> Floats:
        from scipy.linalg import solve_triangular

        found: Floats = solve_triangular(self.root, right, lower=True, trans=transposed, check_finite=False)
        return found


def _curvature(features: StoredVectors, rows: Rows, at: Floats) -> Floats:
    """Return how the sum of losses curves at some weights, on average over the columns: (D + 1, D + 1).

    It is the sum of s q x x^T, x with a 1 behind it, q the mean of p (1 - p) over the classes, but not near 0, as rows
    of which the model is sure will not all stay so. Of more than MOST_COLUMNS it is the diagonal (D + 1,).
    """
    whole = features.shape[1] <= MOST_COLUMNS

    def of(own: Any, piece: Singles) -> Floats:
        probabilities = softmax(_logits(piece, at))
        unsure = np.maximum((probabilities * (1 - probabilities)).mean(axis=1), LEAST_UNSURE)
        scaled = np.column_stack([piece, np.ones(len(piece), np.float32)])
        scaled *= np.sqrt(unsure * rows.weights[own])[:, None]
        found = scaled.T @ scaled if whole else np.square(scaled).sum(axis=0)
        return found.astype(np.float64)

    return total(of(own, piece) for own, piece in pieces(features))


def _logits(piece: Singles, at: Floats) -> Floats:
    scores = (piece @ at[:-1].astype(np.float32)).astype(np.float64) + at[-1]
    return opposite(scores) if at.shape[1] == 1 else scores


def _loss(features: StoredVectors, rows: Rows, at: Floats) -> tuple[float, Floats]:
    """Return the sum of the log losses and its gradient by weights and bias (D + 1, columns)."""
    losses = 0.0

    def slope(own: Any, piece: Singles) -> Floats:
        nonlocal losses
        labels, weights = rows.labels[own], rows.weights[own]
        probabilities = softmax(_logits(piece, at))
        numbers = np.arange(len(labels))
        losses -= float(weights @ np.log(np.maximum(probabilities[numbers, labels], np.finfo(np.float64).tiny)))
        wrong = probabilities
        wrong[numbers, labels] -= 1
        wrong = (wrong[:, 1:] if at.shape[1] == 1 else wrong) * weights[:, None]
        return np.vstack([piece.T @ wrong.astype(np.float32), wrong.sum(axis=0)])

    gradient = total(slope(own, piece) for own, piece in pieces(features))
    return losses, gradient


def logistic_heads(rows: Rows, settings: Sequence[Setting], seed: int, steps: int | None = None) -> list[Linear]:
    """Fit logistic regression for each setting, which gives C; steps : see `fit_logistic`."""
    features, back = coordinates(rows.features)
    fitted = fit_logistic(features, rows, [setting["C"] for setting in settings], seed, steps)
    return [Linear(back(weight), bias) for weight, bias in fitted]
