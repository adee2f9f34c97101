"""Nearest neighbours by the cosine of the angle between feature vectors: the classes of the most similar samples vote.

A neighbour's vote is exp(cosine / temperature), as in Wu et al., CVPR 2018, arXiv:1805.01978, section 3.4 (who use
0.07), or the same for all (`temperature: null`). One more vote, as heavy as the first neighbour's, goes to the classes
by their shares in training, so that no probability is zero. Class weights are refused: a doubled sample takes two of
the k places, which no weight of a vote can imitate.

    runs: {knn: {dataset: cells, features: lite0, transfer: {kind: knn, k: [5, 20, 50]}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.shallow import Head, ShallowModel, ShallowParams, fit_shallow, unit_length, weights_refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.params import Dataset, Features
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Indices, Rows, Setting, Singles

FAMILY = "feature"
VERSION = 1
_COSINES_AT_ONCE = 2**24
"""So many are compared at a time (some 400 MB), to keep memory flat with many stored samples."""


class Params(ShallowParams):
    """Keys of the nearest neighbours."""

    kind: Literal["knn"] = Field(description="votes of the nearest neighbours, by cosine")
    k: OneOrMany[Annotated[int, Field(ge=1)]] = Field([5, 20, 50], description="how many neighbours vote")
    temperature: OneOrMany[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None] = Field(
        [0.07], description="how fast a vote fades as the cosine falls; null: all votes count the same"
    )


@dataclass(frozen=True)
class Neighbours(Head):
    """Votes of stored samples.

    stored : (m, D) of length 1; labels : (m,); share : (classes,) in training; k, temperature : (), 0 for null
    """

    stored: Singles
    labels: Indices
    share: Floats
    k: NDArray[np.int64]
    temperature: Floats

    def logits(self, features: Singles) -> Floats:
        """Return the logarithm of each class's votes (n, classes)."""
        step = max(1, _COSINES_AT_ONCE // len(self.stored))
        return np.concatenate([self._logits(features[i : i + step]) for i in range(0, max(len(features), 1), step)])

    def _logits(self, features: Singles) -> Floats:
        cosines = (unit_length(features) @ self.stored.T).astype(np.float64)
        k = min(int(self.k), len(self.stored))
        nearest = _nearest(cosines, k)
        near = np.take_along_axis(cosines, nearest, axis=1)
        votes = np.exp((near - near[:, :1]) / self.temperature) if self.temperature > 0 else np.ones_like(near)
        own = self.labels[nearest]
        total = np.stack([(votes * (own == c)).sum(axis=1) for c in range(len(self.share))], axis=1)
        return np.log(total + self.share)

    @property
    def trained_parameters(self) -> int:
        """Samples are kept, nothing is trained."""
        return 0


def _nearest(cosines: Floats, k: int) -> Indices:
    """Return the k largest of each row (n, m), the largest first; of equal ones the first, whatever the algorithm."""
    least = np.partition(cosines, -k, axis=1)[:, -k, np.newaxis]
    found = np.empty((len(cosines), k), np.int64)
    for row, among in enumerate(cosines >= least):
        near = np.flatnonzero(among)
        found[row] = near[np.argsort(-cosines[row, near], kind="stable")[:k]]
    return found


load = Neighbours.load


def problem(params: Params, features: Features, dataset: Dataset) -> str | None:  # noqa: ARG001 - as each kind is asked
    """Return that weights are refused, where a data set has them."""
    return weights_refused(params, dataset)


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    """Keep the feature vectors."""
    return fit_shallow(params, data, seed, _heads)


def _heads(rows: Rows, settings: Sequence[Setting], seed: int) -> list[Neighbours]:  # noqa: ARG001 - nothing random
    stored = unit_length(rows.features)
    share = np.bincount(rows.labels, rows.weights, len(rows.classes)) / rows.weights.sum()
    return [
        Neighbours(stored, rows.labels, share, np.array(setting["k"]), np.array(setting["temperature"] or 0.0))
        for setting in settings
    ]
