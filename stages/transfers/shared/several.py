"""Several labels of an image: one model for each label, that tells images with it from those without.

So every head on frozen features takes such data. Values in a list are chosen for each label by itself. (What trains a
network has one network for all labels, with a logistic loss of each; see training.py.) Binary relevance: Tsoumakas and
Katakis, International Journal of Data Warehousing and Mining 3, 2007.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import UserError
from stages.params import kind_module, suggest
from stages.transfers import Part, TrainingData

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stages.params import Transfer
    from stages.store.models import Model

    Load = Callable[[dict[str, Any], dict[str, NDArray[Any]]], Model]


@dataclass(frozen=True)
class EachLabel:
    """A model for each label.

    facts : what model.json holds, `each` those of the labels' models; history is none: each has epochs of its own
    """

    facts: dict[str, Any]
    models: list[Model]
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def chosen(self) -> dict[str, Any]:
        """The values that were chosen: one where all labels have the same, else a list in the order of the labels."""
        return dict(self.facts["chosen"])

    @property
    def trained_parameters(self) -> int:
        """How many numbers the training has set."""
        return sum(model.trained_parameters for model in self.models)

    def predict_proba(self, activations: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability of each label (n, labels) for activations (n, views, *shape)."""
        return np.stack([model.predict_proba(activations)[:, 1] for model in self.models], axis=1)

    def save(self, folder: Path) -> None:
        """Write the models into a folder, as one."""
        from stages.store.models import write_arrays

        named = (model.arrays for model in self.models)  # type: ignore[attr-defined]
        of_all = _of_all(self.facts)
        arrays = {
            f"{at}.{name}": array
            for at, own in enumerate(named)
            for name, array in own.items()
            if at == 0 or name not in of_all
        }
        write_arrays(folder, self.facts, arrays)


def fit_each(fit: Callable[..., Any], params: Transfer, data: TrainingData, seed: int) -> EachLabel:
    """Fit a kind of transfer to each label; raises what it raises, and UserError for a class weight of no label."""
    models = [fit(*of_label(params, data, at), seed) for at in range(len(data.classes))]
    each = [model.facts for model in models]
    chosen = {key: [model.chosen[key] for model in models] for key in models[0].chosen}
    alike = {key: found[0] if all(value == found[0] for value in found) else found for key, found in chosen.items()}
    return EachLabel({"kind": params.kind, "classes": data.classes, "chosen": alike, "each": each}, models)


def load_each(load: Load, facts: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> EachLabel:
    """Make the model again from what it has saved; load : of the kind of the labels' models."""
    of_all = {name: arrays[f"0.{name}"] for name in _of_all(facts)}
    own: list[dict[str, NDArray[Any]]] = [dict(of_all) for _ in facts["each"]]
    for name, array in arrays.items():
        at, _, rest = name.partition(".")
        own[int(at)][rest] = array
    return EachLabel(facts, [load(f, a) for f, a in zip(facts["each"], own, strict=True)])


def _of_all(facts: Mapping[str, Any]) -> Collection[str]:
    """Return the names of arrays that are the same for all labels: those of the rows themselves."""
    names: Collection[str] = getattr(kind_module("transfers", facts["kind"]), "LARGE", ())
    return names


def of_label(params: Transfer, data: TrainingData, at: int) -> tuple[Transfer, TrainingData]:
    """Return the keys and the data of one label: two classes, without it and with it."""
    name = data.classes[at]
    weight = getattr(params, "class_weight", None)
    if isinstance(weight, dict):
        for wrong in weight.keys() - set(data.classes):
            raise UserError(f"class_weight names {wrong}, which is no label; {suggest(wrong, data.classes)}")
        params = params.model_copy(update={"class_weight": {name: weight[name]} if name in weight else "none"})
    training, validation = (_with_or_without(part, at) for part in (data.training, data.validation))
    return params, TrainingData([f"not {name}", name], training, validation)


def _with_or_without(part: Part, at: int) -> Part:
    assert part.targets is not None
    targets = part.targets[:, at]
    return replace(part, labels=part.labels[:, at], targets=np.stack([1 - targets, targets], axis=1))
