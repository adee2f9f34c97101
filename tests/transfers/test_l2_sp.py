"""L2-SP against plain fine-tuning, which it is where nothing pulls, and against its own limit, where nothing moves."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.transfers import TrainingData
from tests.transfers.made_up import fit

KEYS: dict[str, Any] = {"epochs": 2, "batch_size": 12, "min_steps": 0, "average": 0.0, "clip": 0.0, "layer_decay": 1.0}


def test_where_nothing_pulls_it_is_plain_fine_tuning_bit_for_bit(dark_cells: TrainingData) -> None:
    plain = fit("fine_tune", dark_cells, **KEYS, weight_decay=0.0)
    found = fit("l2_sp", dark_cells, **KEYS, alpha=0.0, beta=0.0)
    assert found.history == plain.history
    assert all(np.array_equal(found.arrays[name], array) for name, array in plain.arrays.items())


def test_the_harder_it_pulls_the_nearer_the_weights_stay_to_where_they_started(dark_cells: TrainingData) -> None:
    assert dark_cells.above is not None
    start = {n: p.detach().numpy() for n, p in dark_cells.above().named_parameters() if not n.startswith("head")}

    def moved(alpha: float) -> float:
        model = fit("l2_sp", dark_cells, **{**KEYS, "epochs": 10}, alpha=alpha, learning_rate=0.003, optimizer="sgd")
        return float(sum(np.square(model.arrays[n] - w).sum() for n, w in start.items()) ** 0.5)

    distances = [moved(alpha) for alpha in (0.0, 20.0, 100.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.5 * distances[0]


def test_the_penalty_of_two_steps_is_that_of_the_equation(dark_cells: TrainingData) -> None:
    """After a first step d from the start, the second moves what was transferred by rate * alpha * d more."""
    keys = {**KEYS, "batch_size": 24, "optimizer": "sgd", "learning_rate": 1e-4, "warmup": 0.0, "train": ["biases"]}
    states = []
    for epochs, alpha in ((1, 0.0), (2, 0.0), (2, 50.0)):
        model = fit("l2_sp", dark_cells, **{**keys, "epochs": epochs, "views": "identity"}, alpha=alpha, beta=0.0)
        states.append(model.arrays)
    assert dark_cells.above is not None
    start = {n: p.detach().numpy().copy() for n, p in dark_cells.above().named_parameters()}
    name = next(n for n in states[0] if n.startswith("body") and n.endswith("bias"))
    # The second step of two has half the rate of the first (a half cosine), which is that of the only step of one.
    first = states[0][name] - start[name]
    assert np.abs(first).max() > 0
    np.testing.assert_allclose(states[2][name] - states[1][name], -0.5e-4 * 1.9 * 50.0 * first, rtol=0.05, atol=1e-9)


def test_one_step_is_that_of_the_equation(dark_cells: TrainingData) -> None:
    """From the start only the head's pull has a gradient: beta w, so that SGD moves it by rate * beta * w more."""
    keys = {
        **KEYS,
        "epochs": 1,
        "batch_size": 24,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "warmup": 0.0,
        "refit": False,
    }
    plain = fit("fine_tune", dark_cells, **keys, weight_decay=0.0)
    found = fit("l2_sp", dark_cells, **keys, alpha=5.0, beta=0.5)
    body = [n for n in plain.arrays if n.startswith("body")]
    assert all(np.allclose(found.arrays[n], plain.arrays[n], atol=1e-6) for n in body)
    frozen = fit("fine_tune", dark_cells, **{**keys, "learning_rate": 1e-12}, weight_decay=0.0)  # the head as it starts
    step = found.arrays["head.weight"] - plain.arrays["head.weight"]
    # Nesterov's first step is (1 + momentum) times the gradient.
    np.testing.assert_allclose(step, -0.1 * 1.9 * 0.5 * frozen.arrays["head.weight"], rtol=1e-3, atol=1e-7)
