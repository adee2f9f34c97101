"""The calibrated ensemble against its two members, each fitted alone on real cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.cli import UserError
from stages.store.models import read_model, write_model
from stages.transfers import Part, TrainingData
from stages.transfers.shared import kernel
from tests.backbones.conftest import network
from tests.transfers.made_up import fit

KEYS: dict[str, Any] = {"epochs": 2, "batch_size": 12, "min_steps": 0}
LAYERS = ["layer4.0.conv1", "layer4", "pooled"]


def test_its_logits_are_the_mean_of_those_of_fine_tuning_and_of_a_machine_on_frozen_layers(
    dark_cells: TrainingData,
) -> None:
    whole, outputs = network("timm", "test_resnet").eval(), list[torch.Tensor]()

    def vectors(part: Part) -> Part:
        """What eager torch gives in passing: the means over the maps of three layers."""
        with torch.no_grad():
            whole.layer4(torch.from_numpy(np.array(part.activations[:, 0])))  # type: ignore[operator]
        found = torch.cat([output.mean((2, 3)) for output in [*outputs, outputs[-1]]], dim=1)
        outputs.clear()
        return replace(part, activations=found.numpy()[:, np.newaxis])

    hooks = [
        whole.get_submodule(name).register_forward_hook(lambda *given: outputs.append(given[-1].clone()))
        for name in LAYERS[:2]
    ]
    reduced = TrainingData(dark_cells.classes, vectors(dark_cells.training), vectors(dark_cells.validation))
    for hook in hooks:
        hook.remove()
    both = fit("calibrated_ensemble", dark_cells, **KEYS, layers=LAYERS, C=[1.0, 10.0], gamma=0.5)
    tuned, machine = fit("fine_tune", dark_cells, **KEYS), fit("rbf_svm", reduced, C=[1.0, 10.0], gamma=0.5)
    logits = [
        np.log(tuned.predict_proba(dark_cells.validation.activations)),
        np.log(machine.predict_proba(reduced.validation.activations)),
    ]
    powers = np.exp(np.mean(logits, axis=0))
    found = both.predict_proba(dark_cells.validation.activations)
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), rtol=1e-3)
    assert both.chosen == {**tuned.chosen, **machine.chosen}
    assert both.trained_parameters == tuned.trained_parameters + machine.trained_parameters


def test_what_it_costs_is_both(dark_cells: TrainingData) -> None:
    tuned = fit("fine_tune", dark_cells, **KEYS)
    both = fit("calibrated_ensemble", dark_cells, **KEYS, layers=["layer4"], C=1.0)
    assert both.pass_operations == tuned.pass_operations  # what an epoch end to end takes once more
    views = dark_cells.validation.activations.shape[1]
    once = (both.operations - tuned.operations) // views
    # All of layer4, whose convolutions are all that the head does not do.
    assert once == tuned.pass_operations - tuned.network.head.weight.numel()
    assert both.training_operations == tuned.training_operations + 36 * once


def test_training_leaves_the_frozen_half_as_it_came(dark_cells: TrainingData, tmp_path: Path) -> None:
    model = fit("calibrated_ensemble", dark_cells, **KEYS, layers=["layer4"], C=1.0, learning_rate=0.01)
    came = network("timm", "test_resnet").state_dict()
    assert len(model.frozen) > 5
    assert all(np.array_equal(array, came[name].numpy()) for name, array in model.frozen.items())
    assert not np.array_equal(model.arrays["body.layer4.0.conv1.weight"], model.frozen["layer4.0.conv1.weight"])
    write_model(tmp_path / "model", model)
    again = read_model(tmp_path / "model")
    images = dark_cells.validation.activations
    assert np.array_equal(again.predict_proba(images), model.predict_proba(images))


def test_a_layer_below_the_cut_is_refused(dark_cells: TrainingData) -> None:
    with pytest.raises(UserError, match="layers: layer2 does not lie above the cut layer3: name others, or cut lower"):
        fit("calibrated_ensemble", dark_cells, **KEYS, layers=["layer2"])


def test_too_many_images_for_the_machine_are_refused_before_anything_is_computed(
    dark_cells: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "MOST_ROWS", 35)
    with pytest.raises(UserError, match="36 are more than 35: use linear_svm, logistic, mlp or fine_tune"):
        fit("calibrated_ensemble", replace(dark_cells, above=None, inner=None), **KEYS)
