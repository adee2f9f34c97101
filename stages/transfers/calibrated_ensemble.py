"""A calibrated ensemble: the network fine-tuned above the cut, and a support vector machine on the network as it came.

What is trained and what is frozen err on different images. Both are calibrated, the network by its temperature and the
machine by Platt scaling, and the logits are averaged. The machine reads averaged outputs of layers above the cut, from
the same stored activations; it has a Gaussian kernel, as that of `rbf_svm`, and is fitted on training and validation
together once C and gamma are chosen. Kumar et al., UAI 2022, arXiv:2207.08977, who call it ID-calibrated.

    runs: {both: {dataset: cells, features: lite0-b4, transfer: {kind: calibrated_ensemble, layers: [blocks.5.0.bn1]}}}
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from stages.transfers import TrainingData
from stages.transfers.shared.kernel import Costs, Gammas, Kernel, KernelParams, check_count, kernel_heads
from stages.transfers.shared.network import NetworkModel, loaded, outputs
from stages.transfers.shared.shallow import ShallowModel, fit_shallow, softmax
from stages.transfers.shared.training import TrainingParams, train
from stages.transfers.shared.training import problem as training_problem

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from stages.params import Dataset, Features
    from stages.transfers import Activations
    from stages.transfers.shared.shallow import Floats, Singles

FAMILY = "parameter"
VERSION = 1
STREAMS = True


class Params(TrainingParams):
    """Keys of a calibrated ensemble, beside those of fine-tuning."""

    kind: Literal["calibrated_ensemble"] = Field(
        description="fine-tuning and a support vector machine on frozen layers, averaged"
    )
    layers: list[str] = Field(
        ["pooled"],
        min_length=1,
        description="modules above the cut whose averaged outputs, frozen, the machine reads; pooled may be among them",
    )
    C: Costs = Field([3.0, 10.0, 30.0])
    gamma: Gammas = Field([0.5])


def problem(params: Params, features: Features, dataset: Dataset) -> str | None:
    """Say why these entries do not go together."""
    if dataset.label.multi_label:
        return f"kind {params.kind} takes one class of each image; the data set has several labels: use fine_tune"
    return training_problem(params, features, dataset)


@dataclass
class Ensemble(NetworkModel):
    """A trained network above the cut, and beside it a machine on layers of the network as it came.

    frozen : the weights of what lies between the cut and the layers that `facts` names, as arrays
    machine : what reads their averaged outputs (n, views, D)
    """

    _: KW_ONLY
    frozen: dict[str, NDArray[Any]]
    machine: ShallowModel

    @classmethod
    def load(cls, facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Ensemble:
        """Make the model again from what it has saved."""
        frozen, machine = _taken_out(arrays, "frozen."), _taken_out(arrays, "machine.")
        return cls(facts, arrays, frozen=frozen, machine=Kernel.load(facts["machine"], machine))

    @property
    def operations(self) -> int:
        """How many multiply-adds an image takes above the cut, trained and frozen, over all views that are averaged."""
        return super().operations + int(self.facts["frozen_operations"]) * int(self.facts["averaged"])

    @cached_property
    def inner(self) -> nn.Module:
        """What gives the outputs that the machine reads, on the device that TRANSFER_DEVICE names."""
        from stages.transfers.shared.above import built_inner

        above, layers = self.facts["above"], self.facts["layers"]
        return loaded(lambda: built_inner(above["network"], above["cut"], layers, above["image_size"]), self.frozen)

    def predict_proba(self, activations: Singles) -> Floats:
        """Return the probabilities (n, classes) for activations (n, views, *shape): those of the mean of the logits."""
        tuned = super().predict_proba(activations)
        frozen = self.machine.predict_proba(_vectors(self.inner, activations, self.facts["averaged"]))
        least = np.finfo(np.float64).tiny
        return softmax((np.log(np.maximum(tuned, least)) + np.log(np.maximum(frozen, least))) / 2)

    def save(self, folder: Path) -> None:
        """Write the model into a folder."""
        from stages.store.models import write_arrays

        parts = {"frozen.": self.frozen, "machine.": self.machine.arrays}
        more = {prefix + name: array for prefix, part in parts.items() for name, array in part.items()}
        write_arrays(folder, self.facts, {**self.arrays, **more})


load = Ensemble.load


def fit(params: Params, data: TrainingData, seed: int) -> Ensemble:
    """Train the network and fit the machine on stored activations; see `train` and `kernel_heads` for what is raised.

    Raises UserError for a layer that does not lie above the cut.
    """
    import torch

    from stages.backbones.cut import count_operations
    from stages.backbones.engines import device

    check_count(len(data.training.labels) + len(data.validation.labels))
    assert data.inner is not None
    inner = data.inner(params.layers).to(device())
    views = params.averaged(data.training)
    training, validation = (
        replace(part, activations=_vectors(inner, part.activations, views)) for part in (data.training, data.validation)
    )
    keys = KernelParams(kind="rbf_svm", C=params.C, gamma=params.gamma, class_weight=params.class_weight)
    # First what takes less time, and may refuse what it is given.
    machine = fit_shallow(keys, TrainingData(data.classes, training, validation), seed, kernel_heads, folded=True)
    tuned = train(params, data, seed).model()
    facts, passes = tuned.facts, views * (len(training.labels) + len(validation.labels))
    frozen = {name: tensor.cpu().numpy().copy() for name, tensor in inner.state_dict().items()}
    each = count_operations(inner.cpu(), torch.zeros(1, *data.training.activations.shape[2:]))
    facts |= {
        "chosen": {**facts["chosen"], **machine.chosen},
        "layers": params.layers,
        "machine": machine.facts,
        "frozen_operations": each,
        "trained_parameters": facts["trained_parameters"] + machine.trained_parameters,
        "training_operations": facts["training_operations"] + passes * each,
    }
    return Ensemble(facts, tuned.arrays, tuned.history, tuned.earlier, frozen=frozen, machine=machine)


def _vectors(inner: nn.Module, activations: Activations, views: int) -> Singles:
    """Return what a frozen part gives (n, views, D) for the first views of activations (n, views, *shape)."""
    return np.stack([outputs(inner, activations, view) for view in range(views)], axis=1)


def _taken_out(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Take those of a prefix out of some arrays."""
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}
