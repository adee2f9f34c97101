from __future__ import annotations

import numpy as np
import pytest

from stages.transfers import Part, TrainingData
from stages.transfers.logistic import Params
from stages.transfers.shared import logistic
from stages.transfers.shared.logistic import fit_logistic
from stages.transfers.shared.shallow import prepare

Data = tuple[TrainingData, Part]


def test_of_many_classes_logistic_regression_comes_to_the_same_and_a_start_stops_sooner(
    three_classes: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = three_classes
    _, rows = prepare(Params(kind="logistic"), [data.training], data.classes)
    features, costs = rows.features.astype(np.float64), [0.01, 0.1]
    exact = fit_logistic(features, rows, costs, 0)
    assert np.array_equal(fit_logistic(features, rows, costs, 0, steps=1)[0][0], exact[0][0])  # of few it is no matter
    monkeypatch.setattr(logistic, "MOST_OF_NEWTON", 100)
    for (weight, bias), (exact_weight, exact_bias) in zip(fit_logistic(features, rows, costs, 0), exact, strict=True):
        np.testing.assert_allclose(weight, exact_weight, atol=1e-3 * np.abs(exact_weight).max())
        np.testing.assert_allclose(bias, exact_bias, atol=2e-3)
    sooner = fit_logistic(features, rows, costs, 0, steps=2)
    assert not np.allclose(sooner[1][0], exact[1][0], atol=1e-3 * np.abs(exact[1][0]).max())
    assert capsys.readouterr().err == ""
