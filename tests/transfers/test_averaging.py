"""WiSE-FT and greedy soup against their equations: means of states that fine-tuning alone reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.transfers import TrainingData
from stages.transfers.fine_tune import Params
from stages.transfers.shared.training import Trained, mean_state, train
from tests.transfers.made_up import fit

KEYS: dict[str, Any] = {"epochs": 3, "batch_size": 12, "min_steps": 0, "learning_rate": 0.003}


def trained(data: TrainingData, order: int = 0, **keys: Any) -> Trained:
    return train(Params.model_validate({"kind": "fine_tune", **KEYS, **keys}), data, 0, order=order)


def test_half_way_is_the_mean_of_start_and_end(dark_cells: TrainingData) -> None:
    plain = trained(dark_cells)
    found = fit("wise_ft", dark_cells, **KEYS, alpha=[0.5])
    assert found.chosen == {"epoch": plain.epoch, "alpha": 0.5}
    for name, array in found.arrays.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, (plain.start[name] + plain.chosen[name]) / 2, rtol=1e-6, err_msg=name)


def test_the_ends_of_the_way_are_the_start_and_fine_tuning_itself(dark_cells: TrainingData) -> None:
    plain = trained(dark_cells)
    start, end = (fit("wise_ft", dark_cells, **KEYS, alpha=[alpha]).arrays for alpha in (0.0, 1.0))
    weights = [name for name in end if "num_batches" not in name]
    assert all(np.array_equal(end[name], plain.chosen[name]) for name in weights)
    assert all(np.array_equal(start[name], plain.start[name]) for name in weights)


def test_of_several_shares_the_best_on_validation_is_taken(dark_cells: TrainingData) -> None:
    plain, alphas = trained(dark_cells), [0.0, 0.3, 0.7, 1.0]
    losses = [
        plain.validate(mean_state([plain.start, plain.chosen], [1 - a, a]))["validation_log_loss"] for a in alphas
    ]
    assert len(set(losses)) == len(losses)
    model = fit("wise_ft", dark_cells, **KEYS, alpha=alphas, average_views=False)
    assert model.chosen["alpha"] == alphas[int(np.argmin(losses))]
    rows = np.arange(len(dark_cells.validation.labels))
    p = model.predict_proba(dark_cells.validation.activations)[rows, dark_cells.validation.labels]
    assert -np.log(p).mean() == pytest.approx(min(losses), rel=1e-5)


def test_a_soup_is_the_mean_of_the_members_that_it_keeps_and_no_worse_than_the_best(dark_cells: TrainingData) -> None:
    sizes = [0.1, 1.0, 3.0]
    alone = [trained(dark_cells, order, learning_rate=0.003 * size) for order, size in enumerate(sizes)]
    model = fit("greedy_soup", dark_cells, **KEYS, step_sizes=sizes, average_views=False)
    kept = [sizes.index(size) for size in model.chosen["step_sizes"]]
    losses = [min(row["validation_log_loss"] for row in member.history) for member in alone]
    assert kept[0] == int(np.argmin(losses))
    expected = mean_state([alone[at].chosen for at in kept])
    assert all(np.array_equal(array, expected[name]) for name, array in model.arrays.items())
    # By the recipe: from good to bad, each stays with which the mean is no worse.
    soup, best = [kept[0]], min(losses)
    for at in np.argsort(losses)[1:].tolist():
        found = trained(dark_cells).validate(mean_state([alone[k].chosen for k in [*soup, at]]))["validation_log_loss"]
        if found <= best:
            soup, best = [*soup, at], found
    assert kept == soup
    tried = 2 * len(dark_cells.validation.labels) * model.pass_operations
    assert model.training_operations == sum(member.operations for member in alone) + tried


def test_members_of_a_soup_have_one_start_and_other_orders(dark_cells: TrainingData) -> None:
    first, second = trained(dark_cells), trained(dark_cells, order=1)
    assert all(np.array_equal(array, second.start[name]) for name, array in first.start.items())
    assert not np.array_equal(first.chosen["head.weight"], second.chosen["head.weight"])


def test_a_mean_of_states_has_their_weights_and_their_types() -> None:
    states = [{"w": np.float32([v]), "num_batches_tracked": np.int64(v)} for v in (1, 5)]
    mean = mean_state(states, [0.25, 0.75])
    assert (mean["w"], mean["w"].dtype, int(mean["num_batches_tracked"])) == (4.0, np.float32, 5)
