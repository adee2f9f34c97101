"""A trained part of a network, as a model: what lies above the cut, on stored activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stages.threads import TORCH
from stages.transfers.shared.shallow import sigmoid, softmax

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from stages.transfers import Activations
    from stages.transfers.shared.above import Above
    from stages.transfers.shared.shallow import Floats, Singles

N = TypeVar("N", bound="torch.nn.Module")

IMAGES_AT_ONCE = 32
"""Images that pass together when a model predicts; always so many, for equal shapes are computed equally."""


@dataclass
class NetworkModel:
    """A network above the cut with its weights, as arrays.

    facts : what model.json holds; `above` says how the network is built again, `views` which views are averaged, by
        its `temperature` logits are divided, and `operations` are those of an image's pass
    history : a row per epoch
    earlier : seconds and core seconds that the training took in processes that were stopped
    """

    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    history: list[dict[str, float]] = field(default_factory=list)
    earlier: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    @classmethod
    def load(cls, facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> NetworkModel:
        """Make the model again from what it has saved."""
        return cls(facts, arrays)

    @property
    def chosen(self) -> dict[str, Any]:
        """The epoch that was chosen."""
        return dict(self.facts["chosen"])

    @property
    def trained_parameters(self) -> int:
        """How many numbers the training has set."""
        return int(self.facts["trained_parameters"])

    @property
    def pass_operations(self) -> int:
        """How many multiply-adds an image takes in what is trained, in one view."""
        return int(self.facts["operations"])

    @property
    def operations(self) -> int:
        """How many multiply-adds an image takes above the cut, over all views that are averaged."""
        return self.pass_operations * int(self.facts["averaged"])

    @property
    def training_operations(self) -> int:
        """How many multiply-adds the training has taken."""
        return int(self.facts["training_operations"])

    @cached_property
    def network(self) -> Above:
        """The network, in eval mode, on the device that TRANSFER_DEVICE names."""
        from stages.transfers.shared.above import built_above

        above, classes = self.facts["above"], len(self.facts["classes"])
        return loaded(lambda: built_above(above["network"], above["cut"], above["image_size"], classes), self.arrays)

    def predict_proba(self, activations: Singles) -> Floats:
        """Return the probabilities (n, classes) for activations (n, views, *shape): the mean over the views."""
        views = range(activations.shape[1]) if self.facts["views"] == "all" else [0]
        return predict(
            self.network, activations, views, self.facts["temperature"], self.facts.get("multi_label", False)
        )

    def save(self, folder: Path) -> None:
        """Write the model into a folder."""
        from stages.store.models import write_arrays

        write_arrays(folder, self.facts, self.arrays)


def loaded(build: Callable[[], N], arrays: dict[str, NDArray[Any]]) -> N:
    """Build a network and load its state: in eval mode, on the device that TRANSFER_DEVICE names."""
    import torch

    from stages.backbones.engines import device

    with TORCH:
        network = build()
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    return network.eval().to(device())


def predict(
    network: torch.nn.Module,
    activations: Activations,
    views: Sequence[int] | range,
    temperature: float,
    multi_label: bool = False,
) -> Floats:
    """Return the probabilities (n, classes) that a network in eval mode gives, averaged over some views.

    temperature : its logits are divided by it; multi_label : whether each class has a probability by itself
    """
    among = sigmoid if multi_label else softmax
    total = sum(among(outputs(network, activations, view).astype(np.float64) / temperature) for view in views)
    probabilities: Floats = np.asarray(total) / len(views)
    return probabilities


def outputs(network: torch.nn.Module, activations: Activations, view: int) -> Singles:
    """Return what a network in eval mode gives (n, D) for one view of activations (n, views, *shape)."""
    import torch

    from stages.backbones.cut import plain_attention
    from stages.transfers.shared.above import all_cores

    with TORCH, torch.inference_mode(), all_cores(), plain_attention():
        device = next(network.parameters(), torch.empty(0)).device
        found = [
            network(batch.to(device)).float().cpu().numpy()[:count] for batch, count in _batches(activations, view)
        ]
    return np.concatenate(found)


def _batches(activations: Activations, view: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield whole batches, the last filled up with zeros, and how many images of each count."""
    import torch

    from stages.transfers.shared.layout import channels_last

    for start in range(0, max(len(activations), 1), IMAGES_AT_ONCE):
        rows = np.arange(start, min(start + IMAGES_AT_ONCE, len(activations)))
        batch = activations[rows, np.full(len(rows), view)]
        whole = np.zeros((IMAGES_AT_ONCE, *batch.shape[1:]), np.float32)
        whole[: len(rows)] = batch
        yield channels_last(torch.from_numpy(whole)), len(rows)
