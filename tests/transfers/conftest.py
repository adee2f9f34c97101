"""Made-up features with a known answer, for the tests of the transfers."""

from __future__ import annotations

import numpy as np
import pytest

from stages.transfers import Part, TrainingData
from tests.transfers.made_up import make_data


@pytest.fixture(scope="session")
def two_classes() -> tuple[TrainingData, Part]:
    """Two classes that lie apart: training data, and a test part."""
    return make_data(["sound", "broken"])


@pytest.fixture(scope="session")
def three_classes() -> tuple[TrainingData, Part]:
    return make_data(["crack", "dust", "sound"])


@pytest.fixture(scope="session")
def shuffled() -> tuple[TrainingData, Part]:
    """Two classes whose labels say nothing about the features."""
    data, test = make_data(["sound", "broken"], apart=0.5, test=600)
    random = np.random.default_rng(1)
    parts = []
    for part in (data.training, data.validation, test):
        labels = random.permutation(part.labels)
        parts.append(Part(part.activations, labels, np.eye(2, dtype=np.float32)[labels], part.groups))
    training, validation, test = parts
    return TrainingData(data.classes, training, validation), test
