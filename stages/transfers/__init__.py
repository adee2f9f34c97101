"""Kinds of transfer, one file each, found by the `kind` of a run; what several kinds share lies in shared/.

A kind's file holds

    FAMILY    what moves to the new task: "feature", "parameter", or "none" for what a transfer must beat
    VERSION   a number that grows when the same input gives another result
    Params    its keys in params.yaml
    fit       (params, data, seed) -> model: trains on the training part, chooses on the validation part
    load      (facts, arrays) -> model: the same model from what it has saved
    problem   where needed: (params, features, dataset) -> why these entries of params.yaml do not go together, or None
    STREAMS   True where `fit` reads activations batch by batch while it trains
    PIECES    True where `fit` reads them piece by piece if they are many, or the rows above which it does; else they
              are all in memory
    SQUARES   where needed: how many matrices (D, D) it holds then, of D features, where it is fewer than others do
    LARGE     where needed: names of arrays of the model that `load` can be given as they lie on disk, read by slices

A model is what `stages.store.models.Model` says. A kind's file imports no large library before `fit` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from stages.transfers.shared.above import Above


class Activations(Protocol):
    """Activations (n, views, *shape), in memory or on disk: an array, or what is read like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """All of (n, views, *shape)."""

    def __len__(self) -> int:
        """Return n."""

    def __getitem__(self, where: tuple[NDArray[np.int64], NDArray[np.int64]], /) -> NDArray[np.float32]:
        """Return (k, *shape) for k rows and the view of each."""


@dataclass(frozen=True)
class Part:
    """The samples of one part of a split.

    activations : (n, views, *shape at the cut), the view identity first; where they are stored, a kind that takes them
        so reads them by activations[rows, views]
    labels : (n,) the class of each sample, as an index; of several labels (n, classes), 1 for those that it has
    targets : (n, classes) how much each belongs to each class; None where the labels say it all
    groups : (n,) names of what must stay together, or None where the data set has no groups
    weights : (n,) how much each sample counts; None where all count alike, as one
    """

    activations: NDArray[np.float32]
    labels: NDArray[np.int64]
    targets: NDArray[np.float32] | None
    groups: list[str] | None
    weights: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class TrainingData:
    """What a kind of transfer may see; the test part is not among it.

    above : makes the part of the network above the cut anew, with a head for the classes
    facts : how that part is built again
    checkpoint : where a long training keeps how far it is
    inner : of names of layers, makes what gives their averaged outputs from an activation at the cut, frozen

    Where samples have several labels, `fit` is called for each label by itself, with two classes; but a kind that
    streams is given all of them.
    """

    classes: list[str]
    training: Part
    validation: Part
    above: Callable[[], Above] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    inner: Callable[[Sequence[str]], nn.Module] | None = None

    @property
    def multi_label(self) -> bool:
        """Whether samples may have several labels, or none."""
        return self.training.labels.ndim == 2
