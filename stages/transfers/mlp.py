"""A multilayer perceptron on frozen features: one hidden layer of rectified units, with dropout.

Trained by AdamW on the log loss, the rate falling to zero along a half cosine; the epoch of lowest validation loss is
kept. `refit: true` then trains on training and validation together, along the same course, up to that epoch. Rumelhart,
Hinton and Williams, Nature 323, 1986; Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101.

    runs: {mlp: {dataset: cells, features: lite0, transfer: {kind: mlp, hidden: [64, 256], dropout: 0.5}}}
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from stages.cli import UserError
from stages.params import OneOrMany
from stages.transfers.shared.shallow import (
    Head,
    Normalization,
    ShallowModel,
    WeightedParams,
    facts_of,
    grid,
    prepare,
    validation_losses,
)

if TYPE_CHECKING:
    import torch

    from stages.transfers import TrainingData
    from stages.transfers.shared.shallow import Floats, Rows, Setting, Singles

FAMILY = "feature"
VERSION = 1
PIECES = True


class Params(WeightedParams):
    """Keys of the multilayer perceptron."""

    kind: Literal["mlp"] = Field(description="a multilayer perceptron, in torch")
    hidden: OneOrMany[Annotated[int, Field(ge=1)]] = Field([256], description="units in the hidden layer")
    dropout: OneOrMany[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.5], description="share of hidden units that each training step leaves out"
    )
    learning_rate: OneOrMany[Annotated[float, Field(gt=0)]] = Field([0.001], description="step size at the start")
    weight_decay: OneOrMany[Annotated[float, Field(ge=0)]] = Field([0.01], description="pull of the weights to zero")
    batch_size: int = Field(64, ge=1, description="rows in a training step")
    epochs: int = Field(30, ge=1, description="most passes over the training rows")
    patience: int = Field(10, ge=1, description="stop after so many epochs without a lower validation loss")


@dataclass(frozen=True)
class Perceptron(Head):
    """logits = max(0, features @ weight_in + bias_in) @ weight_out + bias_out.

    weight_in : (D, hidden); bias_in : (hidden,); weight_out : (hidden, classes); bias_out : (classes,)
    """

    weight_in: Singles
    bias_in: Singles
    weight_out: Singles
    bias_out: Singles

    def logits(self, features: Singles) -> Floats:
        """Return (n, classes) for normalised features (n, D)."""
        hidden = np.maximum(features @ self.weight_in + self.bias_in, 0)
        logits: Floats = hidden.astype(np.float64) @ self.weight_out + self.bias_out
        return logits

    @property
    def trained_parameters(self) -> int:
        """All weights and biases."""
        return sum(array.size for array in (self.weight_in, self.bias_in, self.weight_out, self.bias_out))


load = Perceptron.load


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    """Train on feature vectors; the history has a row per epoch of the chosen values (nats per sample).

    Raises UserError when a loss is no longer finite.
    """
    with one_thread():
        return _fit(params, data, seed)


def _fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    settings = grid(params)
    normalization, rows = prepare(params, [data.training], data.classes)
    courses = [_course(params, normalization, rows, setting, data, seed) for setting in settings]
    losses = [min(row["validation_log_loss"] for row in history) for _, history in courses]
    best = int(np.argmin(losses))
    head, history = courses[best]
    epoch = int(np.argmin([row["validation_log_loss"] for row in history])) + 1
    if params.refit:
        del rows  # before as many are made again
        normalization, rows = prepare(params, [data.training, data.validation], data.classes)
        *_, (head, _) = _epochs(params, rows, settings[best], epoch, seed)
    choices = [{**s, "validation_log_loss": loss} for s, loss in zip(settings, losses, strict=True)]
    facts = facts_of(params, data.classes, {**settings[best], "epoch": epoch}, choices)
    return replace(ShallowModel(facts, normalization, head), history=history)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one core: its steps are too small to share, and so the bits do not depend on how many there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _course(
    params: Params, normalization: Normalization, rows: Rows, setting: Setting, data: TrainingData, seed: int
) -> tuple[Head, list[dict[str, float]]]:
    """Train until the validation loss falls no more; return the best epoch's head and a row per epoch."""
    best: Head | None = None
    history: list[dict[str, float]] = []
    lowest, since = np.inf, 0
    for head, training_loss in _epochs(params, rows, setting, params.epochs, seed):
        (loss,) = validation_losses(params, normalization, [head], data)
        if not np.isfinite(training_loss + loss):
            rate = setting["learning_rate"]
            raise UserError(f"the loss is no longer finite in epoch {len(history) + 1}: lower learning_rate {rate:g}")
        history.append({"epoch": len(history) + 1, "training_log_loss": training_loss, "validation_log_loss": loss})
        since += 1
        if best is None or loss < lowest:
            best, lowest, since = head, loss, 0
        elif since >= params.patience:
            break
    assert best is not None
    return best, history


def _epochs(params: Params, rows: Rows, setting: Setting, epochs: int, seed: int) -> Iterator[tuple[Head, float]]:
    """Train, and after each of so many epochs yield the network as it is and its mean training loss."""
    import torch
    from torch.nn.functional import cross_entropy, relu

    labels = torch.from_numpy(rows.labels)
    weights = torch.from_numpy(rows.weights / rows.weights.mean()).float()
    # All that is random comes from this generator: nothing else in the process can move it.
    random = torch.Generator().manual_seed(seed)
    network = _network(rows.features.shape[1], setting["hidden"], len(rows.classes), random)
    weight_in, bias_in, weight_out, bias_out = network
    rate, decay = setting["learning_rate"], setting["weight_decay"]
    optimizer = torch.optim.AdamW(network, lr=rate, weight_decay=decay, fused=True)
    # The course is that of `epochs` in params.yaml also where it is left sooner: a refit repeats its beginning.
    steps = params.epochs * -(-len(labels) // params.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels), generator=random).split(params.batch_size):  # type: ignore[no-untyped-call]
            hidden = relu(torch.from_numpy(rows.features[batch.numpy()]) @ weight_in + bias_in)
            kept = torch.rand(hidden.shape, generator=random) >= setting["dropout"]
            logits = (hidden * kept / (1 - setting["dropout"])) @ weight_out + bias_out
            loss = (weights[batch] * cross_entropy(logits, labels[batch], reduction="none")).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        yield Perceptron(*(tensor.detach().numpy().copy() for tensor in network)), total / len(labels)


def _network(width: int, hidden: int, classes: int, random: torch.Generator) -> list[torch.Tensor]:
    """Return weights and biases of both layers at the start; the output's are zero, as it knows nothing yet."""
    import torch

    weight = torch.randn((width, hidden), generator=random) * (2 / width) ** 0.5  # keeps the signal's size
    start = (weight, torch.zeros(hidden), torch.zeros((hidden, classes)), torch.zeros(classes))
    return [tensor.requires_grad_() for tensor in start]
