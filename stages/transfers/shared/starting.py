"""How a head starts: as a linear probe on what is transferred. Kumar et al., ICLR 2022, arXiv:2202.10054, section 4."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from stages.transfers import Part, TrainingData
from stages.transfers.shared.logistic import logistic_heads
from stages.transfers.shared.network import outputs
from stages.transfers.shared.several import of_label
from stages.transfers.shared.shallow import Linear, WeightedParams, fit_shallow

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from stages.transfers import Activations
    from stages.transfers.shared.above import Above
    from stages.transfers.shared.shallow import Floats, Indices, Singles
    from stages.transfers.shared.training import TrainingParams

COSTS = [0.001, 0.01, 0.1, 1.0]
"""Values of C from which the probe is chosen on validation."""
STEPS = 30
"""Steps of the probe's fit for each C, where there are many classes."""
MOST_IMAGES = 20_000
"""About so many images of a part the probe is fitted or chosen on: they lie in memory, and it is a start alone."""


def start_as_probe(network: Above, data: TrainingData, params: TrainingParams, seed: int) -> None:
    """Let the head be a logistic regression on what the part that is to be trained gives as it is.

    All features are divided by one number: a feature of little variance may grow when batch norms begin to move, and
    should not find a large weight waiting for it.
    """
    import torch

    _settle(network, settling(network), data.training, params.batch_size)
    parts = [_drawn(part, seed) for part in (data.training, data.validation)]
    vectors = [outputs(network.body.eval(), part.activations, 0) for part in parts]
    scale = max(float(np.sqrt(vectors[0].var(axis=0).mean())), float(np.finfo(np.float32).tiny))
    training, validation = (
        replace(part, activations=read[:, np.newaxis] / scale) for read, part in zip(vectors, parts, strict=True)
    )
    keys = _Probe(kind="logistic", normalize="none", refit=False, class_weight=params.class_weight, C=COSTS)
    weight, bias = _fitted(keys, TrainingData(data.classes, training, validation), seed)
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(weight.T / scale))
        network.head.bias.copy_(torch.from_numpy(bias))


class _SomeRows:
    """Some rows of activations, read as all of them are."""

    def __init__(self, activations: Activations, rows: Indices) -> None:
        self._activations, self._rows = activations, rows
        self.shape = (len(rows), *activations.shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, where: tuple[Indices, Indices]) -> Singles:
        rows, views = where
        return self._activations[self._rows[rows], views]


def _drawn(part: Part, seed: int) -> Part:
    """Return a part; of a large one MOST_IMAGES by lot, one with each label, and of several labels one without each."""
    if len(part.labels) <= MOST_IMAGES:
        return part
    order = np.random.default_rng(seed).permutation(len(part.labels))
    columns = part.labels[order].reshape(len(order), -1).T
    first = [np.unique(column, return_index=True)[1] for column in columns]
    rows = np.sort(order[np.union1d(np.arange(MOST_IMAGES), np.concatenate(first))])
    return replace(
        part,
        activations=cast("NDArray[np.float32]", _SomeRows(part.activations, rows)),
        labels=part.labels[rows],
        targets=None if part.targets is None else part.targets[rows],
        groups=None if part.groups is None else [part.groups[row] for row in rows],
        weights=None if part.weights is None else part.weights[rows],
    )


def _fitted(keys: _Probe, data: TrainingData, seed: int) -> tuple[Floats, Floats]:
    """Return weights (D, classes) and bias (classes,) of a probe; of several labels each is a probe of its own."""
    if data.multi_label:
        found = [_fitted(keys, of_label(keys, data, at)[1], seed) for at in range(len(data.classes))]
        weights, biases = (np.stack(parts, axis=-1) for parts in zip(*found, strict=True))
        return weights[:, 1] - weights[:, 0], biases[1] - biases[0]
    head = fit_shallow(keys, data, seed, partial(logistic_heads, steps=STEPS)).head
    assert isinstance(head, Linear)
    return head.weight, head.bias


def settling(network: Above) -> list[nn.modules.batchnorm._NormBase]:
    """Return the batch norms whose statistics move in a training."""
    from torch import nn

    network.training_mode()
    found = [m for m in network.body.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
    network.eval()
    return found


def _settle(network: Above, norms: list[nn.modules.batchnorm._NormBase], part: Part, batch_size: int) -> None:
    """Let batch norms that are trained take the statistics of the training images, as they will in the first steps."""
    import torch

    from stages.transfers.shared.layout import channels_last

    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    where = network.head.weight.device
    order = torch.randperm(len(part.labels)).numpy() if norms else np.empty(0, np.int64)
    with torch.no_grad():
        for rows in np.array_split(order, -(-len(order) // batch_size) or 1):
            if len(rows):
                network.body(channels_last(torch.from_numpy(part.activations[rows, np.zeros_like(rows)])).to(where))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class _Probe(WeightedParams):
    C: list[float]
