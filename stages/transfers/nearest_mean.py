"""Nearest class mean: a sample belongs to the class whose mean feature vector is nearest.

The score of a class is -|x - mean|^2; what all classes share of it drops out, and the rest is linear in x. Scores
become probabilities by Platt scaling (shared/platt.py). Class weights have no meaning here, as a class's mean is the
same however much the class counts, and are refused. Nothing is chosen and little can go wrong with few samples: Snell,
Swersky and Zemel, NeurIPS 2017, arXiv:1703.05175, equation 8; Tibshirani et al., PNAS 99, 2002.

    runs: {nearest-mean: {dataset: cells, features: lite0, transfer: {kind: nearest_mean}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from stages.transfers.shared.platt import calibrate
from stages.transfers.shared.shallow import Linear, ShallowModel, ShallowParams, fit_shallow, weights_refused
from stages.transfers.shared.vectors import pieces, total

if TYPE_CHECKING:
    from stages.params import Dataset, Features
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Indices, Rows, Setting

FAMILY = "feature"
VERSION = 1
PIECES = True


class Params(ShallowParams):
    """Keys of the nearest class mean."""

    kind: Literal["nearest_mean"] = Field(description="the class whose mean feature vector is nearest")


load = Linear.load


def problem(params: Params, features: Features, dataset: Dataset) -> str | None:  # noqa: ARG001 - as each kind is asked
    """Return that weights are refused, where a data set has them."""
    return weights_refused(params, dataset)


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    """Fit on feature vectors; raises UserError for a class with a single image."""
    return fit_shallow(params, data, seed, _heads, folded=True)


def _heads(rows: Rows, settings: Sequence[Setting], seed: int) -> list[Linear]:  # noqa: ARG001 - nothing to choose
    def score(inside: Indices, outside: Indices) -> Floats:
        means = _nearness(rows, inside)
        return np.concatenate([means.logits(piece) for _, piece in pieces(rows.features, outside)])[None]

    head = _nearness(rows, np.arange(len(rows.features)))
    ((slope, shift),) = calibrate(rows, seed, score)
    return [Linear(slope * head.weight, slope * head.bias + shift)]


def _nearness(rows: Rows, inside: Indices) -> Linear:
    """Return -|x - mean|^2 + |x|^2 = 2 x mean - |mean|^2 for each class."""
    labels = rows.labels[inside]
    means = np.stack([_mean(rows, inside[labels == c]) for c in range(len(rows.classes))])
    return Linear(2 * means.T, -np.square(means).sum(axis=1))


def _mean(rows: Rows, own: Indices) -> Floats:
    mean: Floats = total(piece.sum(axis=0, dtype=np.float64) for _, piece in pieces(rows.features, own)) / len(own)
    return mean
