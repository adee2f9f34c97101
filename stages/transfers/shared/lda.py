"""Linear discriminants of classes that share one covariance, shrunk towards a sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.vectors import pieces, total

if TYPE_CHECKING:
    from stages.transfers.shared.shallow import Floats, Indices
    from stages.transfers.shared.vectors import StoredVectors

Shrinkage = OneOrMany[Literal["auto"] | Annotated[float, Field(gt=0, le=1)]]


def shrinkage_field() -> Any:
    """Return what the key `shrinkage` means and its default."""
    meaning = "share of the covariance that is replaced by a sphere of its size; auto: Ledoit and Wolf's"
    return Field(["auto", 0.3], description=meaning)


class Discriminants:
    """Fits discriminants on any of some rows: what all of them have in common is computed once.

    features : (n, columns) perhaps rotated into fewer columns than the `width` that they had; labels, weights : (n,)
    """

    def __init__(self, features: Floats | StoredVectors, width: int, labels: Indices, weights: Floats) -> None:
        self._features, self._width, self._labels, self._weights = features, width, labels, weights
        self._products = self._products_of(None)

    def _products_of(self, rows: Indices | None) -> Floats:
        def products(own: Any, piece: Floats) -> Floats:
            scaled = piece * np.sqrt(self._weights[own])[:, None]
            found: Floats = scaled.T @ scaled
            return found

        return total(products(own, piece) for own, piece in pieces(self._features, rows))

    def fit(self, outside: Indices, shrinkages: Sequence[Any]) -> list[tuple[Floats, Floats]]:
        """Return for each shrinkage weights (columns, classes) and bias (classes,) of log P(class) + log N(x; mean, S).

        S is the covariance within classes of all rows but those outside, shrunk: (1 - shrinkage) S + shrinkage *
        trace(S) / width * I.
        """
        weights = self._weights.copy()
        weights[outside] = 0
        classes = range(self._labels.max() + 1)
        size = np.stack([(weights * (self._labels == c)).sum() for c in classes])

        def sums(own: Any, piece: Floats) -> Floats:
            return np.stack([weights[own] * (self._labels[own] == c) for c in classes]) @ piece

        means = total(sums(own, piece) for own, piece in pieces(self._features)) / size[:, None]
        products = self._products - self._products_of(outside)  # five times less work than from the rows inside
        covariance = (products - (means.T * size) @ means) / weights.sum()
        prior = size / weights.sum()
        result = []
        for wanted in shrinkages:
            shrinkage = self._ledoit_wolf(weights, means, covariance) if wanted == "auto" else wanted
            weight = _solve((1 - shrinkage) * covariance, shrinkage * np.trace(covariance) / self._width, means.T)
            result.append((weight, np.log(prior) - (means.T * weight).sum(axis=0) / 2))
        return result

    def _ledoit_wolf(self, weights: Floats, means: Floats, covariance: Floats) -> float:
        def distances(rows: Any, piece: Floats) -> Floats:
            own = means[self._labels[rows]]
            found: Floats = np.square(piece).sum(axis=1) - 2 * (piece * own).sum(axis=1) + np.square(own).sum(axis=1)
            return found

        found = np.concatenate([distances(rows, piece) for rows, piece in pieces(self._features)])
        return ledoit_wolf(found, covariance, self._width, weights)


def _solve(covariance: Floats, sphere: float, right: Floats) -> Floats:
    """Return (covariance + sphere * I)^-1 right."""
    from scipy.linalg import cho_factor, cho_solve

    # Of features that never vary nothing is left to shrink towards; then any positive number does.
    covariance[np.diag_indices(len(covariance))] += max(sphere, float(np.finfo(np.float32).tiny))
    factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
    solution: Floats = cho_solve(factor, right, check_finite=False)
    return solution


def ledoit_wolf(distances: Floats, covariance: Floats, width: int, weights: Floats) -> float:
    """Return the shrinkage that comes nearest to the true covariance in expectation.

    Ledoit and Wolf, Journal of Multivariate Analysis 88, 2004, section 3.3. distances : (n,) of the rows from the mean
    of their class, squared; covariance : (columns, columns); width : D; weights : (n,) how often each row counts.
    """
    count = float(weights.sum())
    size = float(np.trace(covariance)) / width
    norm = float(np.square(covariance).sum())  # of S, squared
    spread = norm - width * size**2  # of S around its sphere
    error = (float(weights @ np.square(distances)) / count - norm) / count  # of S around the true covariance
    return min(max(error, 0.0) / spread, 1.0) if spread > 0 else 1.0
