"""Support vector machines with a Gaussian kernel exp(-gamma |x - x'|^2 / (D v)), for D features of mean variance v."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
from pydantic import Field

from stages.cli import UserError
from stages.params import OneOrMany
from stages.transfers.shared.shallow import Head, WeightedParams, free_columns
from stages.transfers.shared.svm import MOST_ROWS, machines

if TYPE_CHECKING:
    from stages.transfers.shared.shallow import Floats, Rows, Setting, Singles


Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Costs: TypeAlias = Annotated[
    OneOrMany[Positive],
    Field(description="cost of a sample on the wrong side of its margin; the larger, the less regularised"),
]
Gammas: TypeAlias = Annotated[
    OneOrMany[Positive],
    Field(description="narrowness of the kernel, in units of 1 / (features x their variance)"),
]


class KernelParams(WeightedParams):
    """Keys of a machine with a Gaussian kernel."""

    C: Costs = Field([1.0, 10.0, 100.0])
    gamma: Gammas = Field([1.0])


@dataclass(frozen=True)
class Kernel(Head):
    """logits = exp(-gamma |x - support|^2) @ coefficients + bias.

    support : (m, D) the rows that matter; coefficients : (m, classes); bias : (classes,); gamma : ()
    """

    support: Singles
    coefficients: Floats
    bias: Floats
    gamma: Floats

    def logits(self, features: Singles) -> Floats:
        """Return (n, classes) for normalised features (n, D)."""
        return np.exp(-self.gamma * squared_distances(features, self.support)) @ self.coefficients + self.bias

    @property
    def trained_parameters(self) -> int:
        """A coefficient for each support vector, and the bias; of two classes only the difference is free."""
        return (len(self.support) + 1) * free_columns(len(self.bias))


def check_count(rows: int) -> None:
    """Raise UserError for more rows than a kernel matrix can hold."""
    if rows > MOST_ROWS:
        raise UserError(
            f"a Gaussian kernel compares each row with each, and {rows:,} are more than {MOST_ROWS:,}: "
            "use linear_svm, logistic, mlp or fine_tune, or fewer views"
        )


def kernel_heads(rows: Rows, settings: Sequence[Setting], seed: int) -> list[Kernel]:
    """Fit a machine for each setting, which gives C and gamma; raises UserError for too many rows."""
    features = rows.features
    check_count(len(features))
    distances = squared_distances(features, features)
    scale = 1 / (features.shape[1] * max(_variance(rows), np.finfo(np.float32).tiny))
    heads: dict[tuple[float, float], Kernel] = {}
    for gamma in sorted({setting["gamma"] for setting in settings}):
        costs = sorted({setting["C"] for setting in settings if setting["gamma"] == gamma})
        fitted = machines(np.exp(-gamma * scale * distances), rows, costs, seed)
        for cost, (coefficients, bias) in zip(costs, fitted, strict=True):
            matter = np.flatnonzero(coefficients.any(axis=1))
            heads[cost, gamma] = Kernel(features[matter], coefficients[matter], bias, np.array(gamma * scale))
    return [heads[setting["C"], setting["gamma"]] for setting in settings]


def _variance(rows: Rows) -> float:
    """Return the variance over all features of all rows."""
    share = rows.weights / rows.weights.sum()
    mean = (share @ rows.features).mean()
    return float((share @ np.square(rows.features - np.float32(mean))).mean())


def squared_distances(a: Singles, b: Singles) -> Floats:
    """Return |a_i - b_j|^2, (n, m), of rows (n, D) and (m, D)."""
    squares_a, squares_b = np.square(a).sum(axis=1, dtype=np.float64), np.square(b).sum(axis=1, dtype=np.float64)
    distances: Floats = squares_a[:, None] + squares_b - 2.0 * (a @ b.T)
    return np.maximum(distances, 0)
