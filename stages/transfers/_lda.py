"""Linear discriminants of classes that share one covariance, shrunk towards a sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from stages.params import OneOrMany

if TYPE_CHECKING:
    from stages.transfers._shallow import Floats, Indices

Shrinkage = OneOrMany[Literal["auto"] | Annotated[float, Field(gt=0, le=1)]]


def shrinkage_field() -> Any:
    """Return what the key `shrinkage` means and its default."""
    meaning = "share of the covariance that is replaced by a sphere of its size; auto: Ledoit and Wolf's"
    return Field(["auto", 0.3, 0.9], description=meaning)


def discriminants(
    features: Floats, width: int, labels: Indices, weights: Floats, shrinkages: Sequence[Any]
) -> list[tuple[Floats, Floats]]:
    """Return for each shrinkage weights (columns, classes) and bias (classes,) of log P(class) + log N(x; mean, S).

    S is the covariance within classes, (1 - shrinkage) S + shrinkage * trace(S) / D * I.
    features : (n, columns) perhaps rotated into fewer columns than the D = width that they had
    """
    share = weights / weights.sum()
    prior = np.bincount(labels, share)
    means = np.stack([share * (labels == c) / prior[c] @ features for c in range(len(prior))])
    centred = features - means[labels]
    scaled = centred * np.sqrt(share)[:, None]
    covariance = scaled.T @ scaled
    size = float(np.trace(covariance)) / width
    result = []
    for shrinkage in shrinkages:
        part = ledoit_wolf(centred, covariance, width, weights) if isinstance(shrinkage, str) else shrinkage
        shrunk = (1 - part) * covariance
        shrunk[np.diag_indices(len(shrunk))] += part * size
        weight = _solve(shrunk, means.T)
        result.append((weight, np.log(prior) - (means.T * weight).sum(axis=0) / 2))
    return result


def _solve(matrix: Floats, right: Floats) -> Floats:
    from scipy.linalg import cho_factor, cho_solve

    matrix[np.diag_indices(len(matrix))] += 1e-12 * max(np.trace(matrix) / len(matrix), np.finfo(np.float32).tiny)
    solution: Floats = cho_solve(cho_factor(matrix, lower=True, check_finite=False), right, check_finite=False)
    return solution


def ledoit_wolf(centred: Floats, covariance: Floats, width: int, weights: Floats) -> float:
    """Return the shrinkage that comes nearest to the true covariance in expectation.

    Ledoit and Wolf, Journal of Multivariate Analysis 88, 2004, section 3.3. centred : (n, columns); covariance :
    (columns, columns); width : D; weights : (n,) how often each row counts.
    """
    count = float(weights.sum())
    size = float(np.trace(covariance)) / width
    norm = float(np.square(covariance).sum())  # of S, squared
    spread = norm - width * size**2  # of S around its sphere
    fourth = float(weights @ np.square(np.square(centred).sum(axis=1))) / count
    error = (fourth - norm) / count  # of S around the true covariance
    return min(max(error, 0.0) / spread, 1.0) if spread > 0 else 1.0
