"""Kinds of transfer, one file each, found by the `kind` of a run; what several kinds share lies in shared/.

A kind's file holds

    FAMILY    what moves to the new task: "feature", or "none" for what a transfer must beat
    VERSION   a number that grows when the same input gives another result
    Params    its keys in params.yaml
    fit       (params, data, seed) -> model: trains on the training part, chooses on the validation part
    load      (facts, arrays) -> model: the same model from what it has saved

A model is what `stages.store.models.Model` says. A kind's file imports no large library before `fit` is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Part:
    """The samples of one part of a split.

    activations : (n, views, *shape at the cut), the view identity first
    labels : (n,) the class of each sample, as an index
    targets : (n, classes) how much each belongs to each class
    groups : (n,) names of what must stay together, or None where the data set has no groups
    """

    activations: NDArray[np.float32]
    labels: NDArray[np.int64]
    targets: NDArray[np.float32]
    groups: list[str] | None


@dataclass(frozen=True)
class TrainingData:
    """What a kind of transfer may see; the test part is not among it."""

    classes: list[str]
    training: Part
    validation: Part
