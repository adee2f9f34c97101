"""A linear support vector machine on frozen features: the widest margin between classes.

It minimises |w|^2 / 2 + C * sum of hinge losses max(0, 1 - y (w x + b)). More than two classes: one against the rest.
Margins become probabilities by Platt scaling (shared/platt.py). Cortes and Vapnik, Machine Learning 20, 1995.

Up to 20,000 rows it is solved on the matrix of their inner products, which costs the same for any number of features.
Of more the hinge is rounded at its corner, less and less, and its least sum is searched for, reading the rows piece by
piece (Chapelle, Neural Computation 19, 2007, section 2). The machines that leave a fold out, for Platt scaling, are
searched for beside the one of all rows: a look at the rows serves all.

    runs: {linear-svm: {dataset: cells, features: lite0, transfer: {kind: linear_svm, C: [0.0001, 0.001, 0.01]}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.platt import folds, platt
from stages.transfers.shared.search import curvature, gradient_of, scores_of, search, tell_short
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
from stages.transfers.shared.vectors import StoredVectors, linear_scores, pieces, total

if TYPE_CHECKING:
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Indices, Rows, Setting, Singles

FAMILY = "feature"
VERSION = 1
PIECES = MOST_ROWS
ROUNDED = (1.0, 0.1, 0.03)
"""How far from its corner the hinge is rounded, in one search after the other; a loss is too high by 0.0075 at most."""
NEAR = 1e-4
"""How long the gradient may still be, see search.py."""
MOST_SEARCHED, MOST_MARGINS = 2**20, 2**23
"""So many weights are searched for at a time (some 400 MB), and margins of a piece taken: of many classes some only."""


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
    vectors: Singles | StoredVectors = rows.features
    if len(vectors) > MOST_ROWS:
        stored = vectors if isinstance(vectors, StoredVectors) else StoredVectors([vectors[:, None]], "identity")
        return _many_rows(stored, rows, costs, seed)
    features = vectors[:]
    fitted = machines(inner_products(features), rows, costs, seed)
    return [Linear(features.T @ coefficients, bias) for coefficients, bias in fitted]


def _many_rows(features: StoredVectors, rows: Rows, costs: Sequence[float], seed: int) -> list[Linear]:
    parts = [outside for _, outside in folds(rows, seed)]
    left_out = np.empty(len(rows.labels), np.int64)
    for number, part in enumerate(parts, 1):
        left_out[part] = number
    free = np.arange(len(rows.classes))[-free_columns(len(rows.classes)) :]
    most = min(MOST_SEARCHED // (features.shape[1] + 1), MOST_MARGINS // features.at_once)
    at_once = max(1, most // (len(parts) + 1))
    some = [free[first : first + at_once] for first in range(0, len(free), at_once)]
    singles = features.astype(np.float32)
    searched = [_Machines(singles, rows, left_out, len(parts) + 1, own).search(costs) for own in some]
    found = np.concatenate(searched, axis=3)
    found = opposite(found) if len(free) == 1 else found
    heads = []
    for own in found:
        margins = np.empty((len(rows.labels), len(rows.classes)))
        for number, part in enumerate(parts, 1):
            margins[part] = linear_scores(features, part, [(own[number, :-1], own[number, -1])])[0]
        factor, shift = platt(margins, rows.labels, rows.weights)
        heads.append(Linear(factor * own[0, :-1], factor * own[0, -1] + shift))
    return heads


@dataclass(frozen=True)
class _Machines:
    """Machines that are searched for together: one of all rows, and for each fold one that its rows are left out of.

    left_out : (n,) the fold of each row, 1 and on; count : machines of each column; classes : (columns,) each one's
    Weights and, below them, the bias are (D + 1, count * columns).
    """

    features: StoredVectors
    rows: Rows
    left_out: Indices
    count: int
    classes: Indices

    def loss(self, rounded: float, at: Floats) -> tuple[float, Floats]:
        """Return the mean of the rounded hinge losses, summed over the machines, and its gradient by weights and bias.

        It is 0 where the margin is above 1 by more than `rounded`, linear where it is below by more, else a parabola.
        """
        losses = 0.0

        def of(own: Any, piece: Singles) -> Floats:
            nonlocal losses
            targets, lacking = self._lacking(own, piece, at)
            counted = self.rows.weights[own, None] * (self.left_out[own, None] != np.arange(self.count))
            steep = np.clip((lacking + rounded) / (2 * rounded), 0, 1)
            losses += float((counted[:, :, None] * steep * (lacking + rounded * (1 - steep))).sum())
            return gradient_of(piece, (-targets * steep * counted[:, :, None]).reshape(len(piece), -1))

        gradient, size = total(of(own, piece) for own, piece in pieces(self.features)), self.rows.weights.sum()
        return losses / size, gradient / size

    def curvature(self, rounded: float, at: Floats) -> Floats:
        """Return how the mean loss curves at some weights, on average over the columns of the machine of all rows."""
        first = at[:, : len(self.classes)]

        def bend(own: Any, piece: Singles) -> Floats:
            _, lacking = self._lacking(own, piece, first)
            round_here: Floats = (np.abs(lacking[:, 0]) <= rounded).mean(axis=1)
            return round_here / (2 * rounded)

        return curvature(self.features, self.rows.weights, bend)

    def _lacking(self, own: Any, piece: Singles, at: Floats) -> tuple[Floats, Floats]:
        """Return y, 1 or -1 (k, 1, columns), and by how much the margin of k rows is below 1 (k, machines, columns)."""
        targets = np.where(self.rows.labels[own, None, None] == self.classes, 1.0, -1.0)
        return targets, 1 - targets * scores_of(piece, at).reshape(len(piece), -1, len(self.classes))

    def search(self, costs: Sequence[float]) -> Floats:
        """Return weights and, below them, the bias (costs, count, D + 1, columns) for each C."""
        at = np.zeros((self.features.shape[1] + 1, self.count * len(self.classes)))
        found: dict[float, Floats] = {}
        for cost in sorted(costs):
            penalty, there = 1 / (cost * float(self.rows.weights.sum())), True
            for rounded in ROUNDED:
                loss, bends = partial(self.loss, rounded), self.curvature(rounded, at)
                # Of classes that lie far apart the loss is small, and so are its slopes.
                at, reached = search(loss, bends, penalty, at, NEAR, relative=True)
                there &= reached
            if not there:
                tell_short("a machine", cost)
            found[cost] = at.reshape(len(at), self.count, -1).swapaxes(0, 1)
        return np.stack([found[cost] for cost in costs])
