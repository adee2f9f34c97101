"""Support vector machines on a matrix of inner products or kernels, one class against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.threads import in_threads
from stages.transfers.shared.platt import calibrate
from stages.transfers.shared.shallow import free_columns, opposite

if TYPE_CHECKING:
    from stages.transfers.shared.shallow import Floats, Indices, Rows

MOST_ROWS = 20_000
"""The matrix of so many rows has 3.2 GB; solving for more takes hours."""


def machines(kernel: Floats, rows: Rows, costs: Sequence[float], seed: int) -> list[tuple[Floats, Floats]]:
    """Fit a machine for each cost of a violated margin (C), by libsvm, and scale its margins to logits.

    kernel : (n, n). Returns for each C coefficients (n, classes) and bias (classes,): kernel(x, rows) @ coefficients +
    bias are the logits of x.
    """

    def score(inside: Indices, outside: Indices) -> Floats:
        among, across = kernel[np.ix_(inside, inside)], kernel[np.ix_(outside, inside)]
        # libsvm uses one core and releases Python's lock.
        fitted = list(in_threads(lambda cost: _machine(among, rows, inside, cost), costs))
        return np.stack([across @ coefficients + bias for coefficients, bias in fitted])

    everything = np.arange(len(kernel))
    result = []
    for cost, (slope, shift) in zip(costs, calibrate(rows, seed, score), strict=True):
        coefficients, bias = _machine(kernel, rows, everything, cost)
        result.append((slope * coefficients, slope * bias + shift))
    return result


def _machine(kernel: Floats, rows: Rows, inside: Indices, cost: float) -> tuple[Floats, Floats]:
    from sklearn.svm import SVC

    classes = len(rows.classes)
    columns = free_columns(classes)
    coefficients, bias = np.zeros((len(kernel), columns)), np.zeros(columns)
    for column in range(columns):
        own = rows.labels[inside] == (1 if classes == 2 else column)
        machine = SVC(C=cost, kernel="precomputed").fit(kernel, own, sample_weight=rows.weights[inside])
        coefficients[machine.support_, column] = machine.dual_coef_[0]
        bias[column] = machine.intercept_[0]
    return (opposite(coefficients), opposite(bias)) if classes == 2 else (coefficients, bias)
