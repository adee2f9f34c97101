"""Greedy soup: fine-tune several times from one start, and average the weights of those that are better together.

The members differ in step size and in the order of images. The best on validation comes first; each further one, from
good to bad, stays where the average with it is no worse. The result is one network, and predicts at the price of one.
Wortsman et al., ICML 2022, arXiv:2203.05482, recipe 1; validated by log loss, as few images tell accuracies apart.

    runs: {soup: {dataset: cells, features: lite0-b4, transfer: {kind: greedy_soup, step_sizes: [0.5, 1.0, 2.0]}}}
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from stages.transfers.shared.network import NetworkModel
from stages.transfers.shared.training import TrainingParams, mean_state, train
from stages.transfers.shared.training import problem as problem

if TYPE_CHECKING:
    from stages.transfers import TrainingData
    from stages.transfers.shared.training import Trained

FAMILY = "parameter"
VERSION = 1
STREAMS = True


class Params(TrainingParams):
    """Keys of a greedy soup, beside those of fine-tuning."""

    kind: Literal["greedy_soup"] = Field(description="the weights of several fine-tunings, averaged")
    step_sizes: list[Annotated[float, Field(gt=0)]] = Field(
        [0.5, 1.0, 2.0], min_length=2, description="learning rate of each member, as a share of learning_rate"
    )


load = NetworkModel.load


def fit(params: Params, data: TrainingData, seed: int) -> NetworkModel:
    """Train the members on stored activations, one after the other; see `train` for what is raised."""
    members = [_member(params, data, seed, at) for at in range(len(params.step_sizes))]
    losses = [min(row["validation_log_loss"] for row in member.history) for member in members]
    first, *others = (int(at) for at in np.argsort(losses, kind="stable"))
    kept, best, temperature = [first], losses[first], None
    for at in others:
        found = members[0].validate(mean_state([members[m].chosen for m in [*kept, at]]))
        if found["validation_log_loss"] <= best:
            kept, best, temperature = [*kept, at], found["validation_log_loss"], found["temperature"]
    model = members[first].model(
        mean_state([members[m].final for m in kept]), temperature, step_sizes=[params.step_sizes[m] for m in kept]
    )
    model.facts["training_operations"] = sum(member.operations for member in members)
    model.earlier = np.sum([member.earlier for member in members], axis=0)
    return model


def _member(params: Params, data: TrainingData, seed: int, at: int) -> Trained:
    """Train a member; each keeps checkpoints of its own."""
    own = params.model_copy(update={"learning_rate": params.learning_rate * params.step_sizes[at]})
    checkpoint = None if data.checkpoint is None else data.checkpoint.with_name(f"{data.checkpoint.name}-member-{at}")
    return train(own, replace(data, checkpoint=checkpoint), seed, order=at)
