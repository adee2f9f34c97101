"""The share of each class among the training samples, whatever the image: what every transfer must beat.

The most frequent class is the prediction. Nothing moves to the new task.

    runs: {majority: {dataset: cells, features: lite0, transfer: {kind: majority}}}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from stages.params import Transfer
from stages.transfers.shared.shallow import Head, Normalization, ShallowModel, counts

if TYPE_CHECKING:
    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Singles

FAMILY = "none"
VERSION = 1
PIECES, SQUARES = True, 0  # it reads none


class Params(Transfer):
    """The majority class needs no keys."""

    kind: Literal["majority"] = Field(description="the most frequent class, with the classes' shares as probabilities")


@dataclass(frozen=True)
class Constant(Head):
    """The same logits for every image; bias : (classes,)."""

    bias: Floats

    def logits(self, features: Singles) -> Floats:
        """Return the same row for each of n feature vectors."""
        return np.tile(self.bias, (len(features), 1))

    @property
    def trained_parameters(self) -> int:
        """The share of each class but one, which the others leave over."""
        return len(self.bias) - 1


load = Constant.load


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:  # noqa: ARG001 - nothing here is random
    """Count the classes of the training and validation samples."""
    parts = (data.training, data.validation)
    labels, weights = np.concatenate([part.labels for part in parts]), counts(parts)
    share = np.bincount(labels, weights, len(data.classes)) / weights.sum()
    facts = {"kind": params.kind, "classes": data.classes, "views": "identity", "normalize": "none", "chosen": {}}
    return ShallowModel(facts, Normalization("none"), Constant(np.log(share)))
