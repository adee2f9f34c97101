"""BSS against numpy's singular values, and against plain fine-tuning, which it is where nothing is penalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.transfers import TrainingData
from tests.transfers.made_up import fit

KEYS: dict[str, Any] = {"epochs": 2, "batch_size": 12, "min_steps": 0, "average": 0.0, "clip": 0.0}


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_the_penalty_is_the_sum_of_squares_of_the_smallest_singular_values(shape: tuple[int, int]) -> None:
    import torch

    from stages.transfers.bss import shrinkage

    features = np.random.default_rng(0).normal(size=shape)
    values = np.linalg.svd(features, compute_uv=False)
    assert shrinkage(torch.from_numpy(features), 1).item() == pytest.approx(values[-1] ** 2)
    assert shrinkage(torch.from_numpy(features), 3).item() == pytest.approx(np.square(values[-3:]).sum())


def test_where_nothing_is_penalised_it_is_plain_fine_tuning_bit_for_bit(dark_cells: TrainingData) -> None:
    plain, found = fit("fine_tune", dark_cells, **KEYS), fit("bss", dark_cells, **KEYS, eta=0.0)
    assert found.history == plain.history
    assert all(np.array_equal(found.arrays[name], array) for name, array in plain.arrays.items())


def test_the_penalised_direction_fades(dark_cells: TrainingData) -> None:
    import torch

    from stages.transfers.bss import shrinkage

    def left(eta: float) -> float:
        model = fit("bss", dark_cells, **{**KEYS, "epochs": 6, "batch_size": 24}, eta=eta, learning_rate=0.003)
        with torch.no_grad():
            features = model.network.body(torch.from_numpy(np.array(dark_cells.training.activations[:, 0])))
        return shrinkage(features, 1).item()

    assert left(1000.0) < 0.5 * left(0.0)
