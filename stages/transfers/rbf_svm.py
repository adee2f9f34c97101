"""A support vector machine with a Gaussian kernel on frozen features: a smooth border that need not be straight.

Its kernel is exp(-gamma |x - x'|^2 / (D v)), with D features of mean variance v, so that gamma 1 suits features of any
number and scale (scikit-learn's "scale"). More than two classes: one against the rest. Margins become probabilities by
Platt scaling (shared/platt.py). Cortes and Vapnik, Machine Learning 20, 1995.

    runs: {svm: {dataset: cells, features: lite0, transfer: {kind: rbf_svm, C: [1, 10, 100], gamma: [0.5, 1]}}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.transfers.shared.kernel import Kernel, KernelParams, kernel_heads
from stages.transfers.shared.shallow import ShallowModel, fit_shallow

if TYPE_CHECKING:
    from stages.transfers import TrainingData

FAMILY = "feature"
VERSION = 1


class Params(KernelParams):
    """Keys of the support vector machine with a Gaussian kernel."""

    kind: Literal["rbf_svm"] = Field(description="a support vector machine with a Gaussian kernel")


load = Kernel.load


def fit(params: Params, data: TrainingData, seed: int) -> ShallowModel:
    """Fit on feature vectors; raises UserError for more rows than a kernel matrix can hold."""
    return fit_shallow(params, data, seed, kernel_heads, folded=True)
