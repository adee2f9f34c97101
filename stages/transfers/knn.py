"""Nearest neighbours by the cosine of the angle between feature vectors: the classes of the most similar samples vote.

A neighbour's vote is exp(cosine / temperature), as in Wu et al., CVPR 2018, arXiv:1805.01978, section 3.4 (who use
0.07), or the same for all (`temperature: null`). One more vote, as heavy as the first neighbour's, goes to the classes
by their shares in training, so that no probability is zero. Class weights are refused: a doubled sample takes two of
the k places, which no weight of a vote can imitate.

    runs: {knn: {dataset: cells, features: lite0, transfer: {kind: knn, k: [5, 20, 50]}}}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
from pydantic import Field

from stages.params import OneOrMany
from stages.transfers.shared.shallow import Head, ShallowModel, ShallowParams, fit_shallow, unit_length, weights_refused
from stages.transfers.shared.vectors import StoredVectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.params import Dataset, Features
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Indices, Rows, Setting, Singles

FAMILY = "feature"
VERSION = 1
PIECES, SQUARES = True, 0
LARGE = ("stored",)
_COSINES_AT_ONCE, _NUMBERS_AT_ONCE = 2**24, 2**24
"""So many are compared at a time (some 400 MB), and of what is stored read, to keep memory flat with many samples."""


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

    stored : (m, D) of length 1, an array or what is read like one by slices; labels : (m,)
    share : (classes,) in training; k, temperature : (), 0 for null
    """

    stored: Singles
    labels: Indices
    share: Floats
    k: NDArray[np.int64]
    temperature: Floats

    def logits(self, features: Singles) -> Floats:
        """Return the logarithm of each class's votes (n, classes)."""
        return next(self.logits_of([self], features))

    @classmethod
    def logits_of(cls, heads: Sequence[Neighbours], features: Singles) -> Iterator[Floats]:
        """Yield the logits of several that store the same samples: the nearest of all are those of the largest k."""
        near, nearest = max(heads, key=lambda head: int(head.k))._neighbours(unit_length(features))
        for head in heads:
            k = int(head.k)
            yield head._logits(near[:, :k], nearest[:, :k])

    def _logits(self, near: Floats, nearest: Indices) -> Floats:
        votes = np.exp((near - near[:, :1]) / self.temperature) if self.temperature > 0 else np.ones_like(near)
        own = self.labels[nearest]
        total = np.stack([(votes * (own == c)).sum(axis=1) for c in range(len(self.share))], axis=1)
        return np.log(total + self.share)

    def _neighbours(self, features: Singles) -> tuple[Floats, Indices]:
        """Return the cosines of the k nearest of each of n vectors of length 1, the largest first, and whose they are.

        What is stored is read piece by piece: it may lie on disk.
        """
        count, width = self.stored.shape
        k = min(int(self.k), count)
        step = max(1, min(_COSINES_AT_ONCE // max(len(features), 1), _NUMBERS_AT_ONCE // width))
        near, nearest = np.empty((len(features), 0)), np.empty((len(features), 0), np.int64)
        for first in range(0, count, step):
            cosines = (features @ self.stored[first : first + step].T).astype(np.float64)
            found = _nearest(cosines, min(k, cosines.shape[1]))
            near = np.concatenate([near, np.take_along_axis(cosines, found, axis=1)], axis=1)
            nearest = np.concatenate([nearest, first + found], axis=1)
            best = np.argsort(-near, axis=1, kind="stable")[:, :k]  # of equal ones the first
            near, nearest = np.take_along_axis(near, best, axis=1), np.take_along_axis(nearest, best, axis=1)
        return near, nearest

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
    stored = _of_unit_length(rows.features)
    share = np.bincount(rows.labels, rows.weights, len(rows.classes)) / rows.weights.sum()
    return [
        Neighbours(stored, rows.labels, share, np.array(setting["k"]), np.array(setting["temperature"] or 0.0))
        for setting in settings
    ]


def _of_unit_length(features: Singles | StoredVectors) -> Singles:
    if not isinstance(features, StoredVectors):
        return unit_length(features)
    normalize = features.normalize

    def both(rows: Singles) -> None:
        if normalize is not None:
            normalize(rows)
        rows[:] = unit_length(rows)

    return cast("Singles", replace(features, normalize=both))
