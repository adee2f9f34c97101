"""The weights of a linear head that a smooth loss is least at, of vectors that are read piece by piece.

Each look at the loss reads all vectors: as few looks as possible are what counts. So L-BFGS does not search the weights
w but v = L^T w, where L L^T is about how the loss curves where it begins: in v it curves about the same in all
directions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import warn
from stages.transfers.shared.vectors import StoredVectors, pieces, total

if TYPE_CHECKING:
    from stages.transfers.shared.shallow import Floats, Singles

MOST_STEPS = 1000
"""Steps after which a search is given up."""
MOST_COLUMNS = 8192
"""Columns of stored vectors up to which a curvature is computed whole: it has half a GB. Of more, its diagonal is."""
NEAR = 1e-5
"""How long the gradient by v may still be, for a mean loss, where nothing else is said: about how far v then is off."""
LEAST_BEND = 1e-4
FAR = 1000
"""How many times that the gradient may be, from where on a search is said to have stopped short."""
_KEPT = 20  # changes of v and of the gradient that L-BFGS remembers


def scores_of(piece: Singles, at: Floats) -> Floats:
    """Return x w + b (rows, columns) of a piece (rows, D) for weights and, below them, the bias (D + 1, columns)."""
    found: Floats = (piece @ at[:-1].astype(np.float32)).astype(np.float64) + at[-1]
    return found


def gradient_of(piece: Singles, wrong: Floats) -> Floats:
    """Return the gradient by weights and bias (D + 1, columns), given that by the scores (rows, columns)."""
    return np.vstack([piece.T @ wrong.astype(np.float32), wrong.sum(axis=0)])


def curvature(features: StoredVectors, weights: Floats, bend: Callable[[Any, Singles], Floats]) -> Floats:
    """Return the mean of q x x^T (D + 1, D + 1), x with a 1 behind it; of more than MOST_COLUMNS its diagonal (D + 1,).

    weights : (n,) how often each row counts; bend : gives q (k,), how the loss of k rows and their piece curves. It is
    taken as LEAST_BEND at least: rows of which a model is sure will not all stay so.
    """
    whole = features.shape[1] <= MOST_COLUMNS

    def of(own: Any, piece: Singles) -> Floats:
        scaled = np.column_stack([piece, np.ones(len(piece), np.float32)])
        scaled *= np.sqrt(np.maximum(bend(own, piece), LEAST_BEND) * weights[own])[:, None]
        found = scaled.T @ scaled if whole else np.square(scaled).sum(axis=0)
        return found.astype(np.float64)

    mean: Floats = total(of(own, piece) for own, piece in pieces(features)) / weights.sum()
    return mean


def search(
    loss: Callable[[Floats], tuple[float, Floats]],
    curvature: Floats,
    penalty: float,
    at: Floats,
    near: float = NEAR,
    relative: bool = False,
) -> tuple[Floats, bool]:
    """Return weights and bias (D + 1, columns) at which loss + penalty |w|^2 / 2 is least, and whether it nearly is.

    loss : gives the mean loss at some weights, and its gradient by them; curvature : of it, see there
    at : where the search begins; near : how long the gradient by v may still be
    relative : whether in what the penalised loss is where the search begins; else in what it is measured in
    """
    from scipy.optimize import minimize

    penalties, columns = np.append(np.full(len(at) - 1, penalty), 0), at.shape[1]
    even = _Preconditioner.of(curvature, penalties)

    def of(searched: Floats) -> tuple[float, Floats]:
        at = even.back(searched.reshape(-1, columns))
        found, by_weights = loss(at)
        penalised = penalties[:, None] * at
        return (found + float((penalised * at).sum()) / 2) / scale, even.slope(by_weights + penalised).ravel() / scale

    start, scale = even.there(at).ravel(), 1.0
    scale = of(start)[0] if relative else scale
    limits = {"maxiter": MOST_STEPS, "maxcor": _KEPT, "gtol": near, "ftol": 1e-9}
    result = minimize(of, start, jac=True, method="L-BFGS-B", options=limits)
    # Rounding may end it sooner, where the sum over so many rows no longer falls.
    there = result.nit < MOST_STEPS and np.abs(result.jac).max() <= FAR * near
    return even.back(result.x.reshape(-1, columns)), bool(there)


def tell_short(what: str, cost: float) -> None:
    """Say of what was searched for, and its C, that it was not reached."""
    advice = "a smaller C, or normalize: standard, is easier to fit"
    warn(f"{what} with C {cost:g} stopped short of its optimum; {advice}")


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
