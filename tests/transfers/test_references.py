"""Each kind of transfer against scikit-learn, a closed form or a simpler method, on the same standardised features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stages.cli import UserError
from stages.transfers import Part, TrainingData, linear_svm, mlp
from stages.transfers.ridge import solve
from stages.transfers.shared import kernel, svm, vectors
from stages.transfers.shared.lda import Discriminants, ledoit_wolf
from stages.transfers.shared.shallow import grid, prepare, softmax
from tests.transfers.made_up import fit, make_data

Data = tuple[TrainingData, Part]


@pytest.fixture(scope="module", params=[24, 300], ids=["few features", "more features than samples"])
def overlapping(request: pytest.FixtureRequest) -> Data:
    return make_data(["sound", "broken"], apart=0.25 if request.param == 24 else 0.1, width=request.param)


def plain(data: TrainingData, test: Part) -> tuple[Any, Any, Any]:
    """Return standardised features of training and test (first view), and the training labels."""
    scaler = StandardScaler().fit(data.training.activations[:, 0].astype(np.float64))
    return (
        scaler.transform(data.training.activations[:, 0]),
        scaler.transform(test.activations[:, 0]),
        data.training.labels,
    )


def fitted(kind: str, data: TrainingData, **keys: Any) -> Any:
    """Fit on the training part alone, with one value for each key."""
    return fit(kind, data, views="identity", refit=False, **keys)


def logit(probabilities: Any) -> Any:
    return np.log(probabilities[:, 1] / probabilities[:, 0])


def assert_same_up_to_slope_and_shift(found: Any, expected: Any, tolerance: float) -> None:
    slope, shift = np.polyfit(expected, found, 1)
    assert slope > 0
    np.testing.assert_allclose(found, slope * expected + shift, atol=tolerance * np.abs(found).max())


@pytest.mark.parametrize("C", [0.001, 0.1])
def test_logistic_is_scikit_learns(overlapping: Data, C: float) -> None:  # noqa: N803
    data, test = overlapping
    x, x_test, y = plain(data, test)
    expected = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(x, y).predict_proba(x_test)
    found = fitted("logistic", data, C=C).predict_proba(test.activations)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_logistic_of_three_classes_is_scikit_learns(three_classes: Data) -> None:
    data, test = three_classes
    x, x_test, y = plain(data, test)
    expected = LogisticRegression(C=0.01, tol=1e-10, max_iter=10_000).fit(x, y).predict_proba(x_test)
    np.testing.assert_allclose(fitted("logistic", data, C=0.01).predict_proba(test.activations), expected, atol=2e-4)


def test_warm_starts_change_no_answer(overlapping: Data) -> None:
    data, test = overlapping
    from_a_list = fitted("logistic", data, C=[0.0001, 0.001, 0.01])
    alone = fitted("logistic", data, C=from_a_list.chosen["C"])
    found, expected = (model.predict_proba(test.activations) for model in (from_a_list, alone))
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize(("kind", "kernel", "C"), [("rbf_svm", "rbf", 3.0), ("linear_svm", "linear", 0.01)])
def test_svms_have_the_margins_of_scikit_learn(overlapping: Data, kind: str, kernel: str, C: float) -> None:  # noqa: N803
    data, test = overlapping
    x, x_test, y = plain(data, test)
    expected = SVC(C=C, kernel=kernel, gamma="scale", tol=1e-6).fit(x, y).decision_function(x_test)
    found = logit(fitted(kind, data, C=C).predict_proba(test.activations))
    assert_same_up_to_slope_and_shift(found, expected, tolerance=2e-2)


def test_svms_of_three_classes_have_the_margins_of_one_against_the_rest(three_classes: Data) -> None:
    data, test = three_classes
    x, x_test, y = plain(data, test)
    margins = [SVC(C=1.0, tol=1e-6).fit(x, y == c).decision_function(x_test) for c in range(3)]
    found = np.log(fitted("rbf_svm", data, C=1.0).predict_proba(test.activations))
    differences = found[:, 1:] - found[:, :1]  # of logits, in which only one slope is common to all
    expected = np.stack(margins[1:], axis=1) - margins[0][:, None]
    slopes = [np.polyfit(expected[:, i], differences[:, i], 1)[0] for i in range(2)]
    assert slopes[0] == pytest.approx(slopes[1], rel=0.02)
    for i in range(2):
        assert_same_up_to_slope_and_shift(differences[:, i], expected[:, i], tolerance=2e-2)


@pytest.mark.parametrize(("which", "at_once"), [("two_classes", 10**6), ("three_classes", 10**6), ("three_classes", 1)])
def test_a_linear_svm_of_many_rows_is_that_of_few(
    which: str, at_once: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Which libsvm solves exactly; also where samples and classes weigh differently, and classes come one by one."""
    data, test = request.getfixturevalue(which)
    random = np.random.default_rng(0)
    training, validation = (
        replace(part, weights=random.uniform(0.1, 3, len(part.labels))) for part in (data.training, data.validation)
    )
    data = replace(data, training=training, validation=validation)
    keys: dict[str, Any] = {"C": [0.01, 0.001], "class_weight": {data.classes[0]: 2.0}}
    expected = fit("linear_svm", data, **keys)
    monkeypatch.setattr(linear_svm, "MOST_ROWS", 10)
    monkeypatch.setattr(linear_svm, "MOST_SEARCHED", at_once)
    monkeypatch.setattr(vectors, "PIECE_BYTES", 50 * data.training.activations.shape[2] * 8)
    monkeypatch.setattr(linear_svm, "ROUNDED", (*linear_svm.ROUNDED, 0.003))
    found = fit("linear_svm", data, **keys)
    for one, other in zip(found.facts["choices"], expected.facts["choices"], strict=True):
        assert one == pytest.approx(other, rel=0.002, abs=2e-4)
    probabilities = expected.predict_proba(test.activations)
    np.testing.assert_allclose(found.predict_proba(test.activations), probabilities, atol=0.005)
    assert np.ptp(probabilities) > 0.5


def test_a_linear_svm_of_many_rows_comes_near_enough(overlapping: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    data, test = overlapping
    expected = logit(fitted("linear_svm", data, C=0.01).predict_proba(test.activations))
    monkeypatch.setattr(linear_svm, "MOST_ROWS", 10)
    found = logit(fitted("linear_svm", data, C=0.01).predict_proba(test.activations))
    assert np.corrcoef(found, expected)[0, 1] > 0.999
    np.testing.assert_allclose(found, expected, atol=0.15)


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_a_linear_svm_of_classes_far_apart_is_the_widest_margin(C: float, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N803
    """Where a margin is missed by none or few, the mean loss is small: it is still searched for."""
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    x = (random.standard_normal((400, 8)) + 2.2 * (2 * labels[:, None] - 1)).astype(np.float32)
    part = Part(x[:, None], labels, None, None)
    monkeypatch.setattr(linear_svm, "MOST_ROWS", 10)
    model = fitted("linear_svm", TrainingData(["a", "b"], part, part), C=C, normalize="none")
    found = model.head.weight[:, 1] - model.head.weight[:, 0]
    expected = SVC(C=C, kernel="linear", tol=1e-6).fit(x, labels).coef_[0]
    assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > 0.998


def test_an_rbf_svm_of_too_many_rows_says_what_to_use(two_classes: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel.MOST_ROWS == svm.MOST_ROWS == 20_000
    monkeypatch.setattr(kernel, "MOST_ROWS", 100)
    with pytest.raises(UserError, match="180 are more than 100: use linear_svm, logistic, mlp or fine_tune"):
        fit("rbf_svm", two_classes[0], C=1.0)


def test_knn_has_the_neighbours_of_scikit_learn() -> None:
    data, test = make_data(["a", "b", "c"], apart=0.3)
    x, x_test, y = plain(data, test)
    votes = 7 * KNeighborsClassifier(7, metric="cosine").fit(x, y).predict_proba(x_test)
    share = np.bincount(y) / len(y)
    found = fitted("knn", data, k=7, temperature=None).predict_proba(test.activations)
    np.testing.assert_allclose(found, (votes + share) / 8, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_of_equally_near_neighbours_the_first_vote(k: int) -> None:
    from stages.transfers.knn import _nearest

    cosines = np.random.default_rng(0).integers(0, 4, (50, 20)) / 4.0  # each number about five times
    np.testing.assert_array_equal(_nearest(cosines, k), np.argsort(-cosines, axis=1, kind="stable")[:, :k])


def test_knn_votes_fade_with_the_cosine() -> None:
    """Two stored samples at cosines 1 and 0, temperature 0.5: votes 1 and exp(-2), and one vote of the shares."""
    activations = np.array([[1, 0], [0, 1]], np.float32)[:, None]
    part = Part(activations, np.array([0, 1]), np.eye(2, dtype=np.float32), None)
    keys = {"k": 2, "temperature": 0.5, "normalize": "none", "refit": False}
    model = fit("knn", TrainingData(["a", "b"], part, part), **keys)
    expected = np.array([1.5, np.exp(-2) + 0.5])
    np.testing.assert_allclose(model.predict_proba(activations[:1])[0], expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["lda", "lda_probe"])
def test_discriminants_are_scikit_learns(overlapping: Data, kind: str) -> None:
    data, test = overlapping
    x, x_test, y = plain(data, test)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(x, y)
    found = logit(fitted(kind, data, shrinkage=0.3).predict_proba(test.activations))
    assert_same_up_to_slope_and_shift(found, reference.decision_function(x_test), tolerance=1e-4)


def test_discriminants_without_some_rows_are_those_of_the_others() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(80) % 3
    x, weights = random.normal(size=(80, 12)) + labels[:, None], random.uniform(0.5, 2, 80)
    inside, outside = np.arange(80)[20:], np.arange(20)
    found = Discriminants(x, 12, labels, weights).fit(outside, ["auto", 0.2])
    expected = Discriminants(x[inside], 12, labels[inside], weights[inside]).fit(np.arange(0), ["auto", 0.2])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(one[1], other[1], rtol=1e-9)


@pytest.mark.parametrize("width", [5, 200])
def test_automatic_shrinkage_is_scikit_learns(width: int) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, width)) * random.gamma(1.0, size=width)
    found = ledoit_wolf(np.square(x).sum(axis=1), x.T @ x / 60, width, np.ones(60))
    assert found == pytest.approx(ledoit_wolf_shrinkage(x, assume_centered=True), rel=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_ridge_is_scikit_learns(overlapping: Data, alpha: float) -> None:
    data, test = overlapping
    x, x_test, y = plain(data, test)
    expected = Ridge(alpha).fit(x, 2.0 * y - 1).predict(x_test)
    found = logit(fitted("ridge", data, alpha=alpha).predict_proba(test.activations))
    assert_same_up_to_slope_and_shift(found, expected, tolerance=1e-4)


@pytest.mark.parametrize("width", [9, 30])  # fewer columns than a fold of 15 has rows, and more
def test_ridge_scores_out_of_fold_are_those_of_models_fitted_without_the_fold(width: int) -> None:
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(60, width)), random.uniform(0.5, 3, 60)
    targets = random.normal(size=(60, 2))
    center = weights @ x / weights.sum()
    scaled = (x - center) * np.sqrt(weights)[:, None]
    parts = [np.arange(60)[i::4] for i in range(4)]
    weight, bias, scores = solve(scaled, scaled.T @ scaled, targets, weights, 2.0, parts)
    whole = Ridge(2.0).fit(x, targets, sample_weight=weights)
    np.testing.assert_allclose(weight.T, whole.coef_, atol=1e-9)
    np.testing.assert_allclose(bias - center @ weight, whole.intercept_, atol=1e-9)
    for outside in parts:
        inside = np.setdiff1d(np.arange(60), outside)
        without = Ridge(2.0).fit(x[inside], targets[inside], sample_weight=weights[inside])
        np.testing.assert_allclose(scores[outside], without.predict(x[outside]), atol=1e-9)


def test_nearest_mean_has_the_means_of_scikit_learn(overlapping: Data) -> None:
    data, test = overlapping
    x, x_test, y = plain(data, test)
    sound, broken = NearestCentroid().fit(x, y).centroids_
    expected = np.square(x_test - sound).sum(axis=1) - np.square(x_test - broken).sum(axis=1)
    found = logit(fitted("nearest_mean", data).predict_proba(test.activations))
    assert_same_up_to_slope_and_shift(found, expected, tolerance=1e-4)


def test_majority_gives_the_shares_of_training_and_validation() -> None:
    data, test = make_data(["sound", "broken"])
    labels = np.where(np.arange(120) < 100, 1, 0)
    training = Part(data.training.activations, labels, data.training.targets, None)
    validation = Part(data.validation.activations, np.zeros(60, np.int64), data.validation.targets, None)
    found = fit("majority", TrainingData(data.classes, training, validation)).predict_proba(test.activations)
    np.testing.assert_allclose(found, np.tile([80 / 180, 100 / 180], (120, 1)), rtol=1e-12)
    heavy = replace(training, weights=np.where(labels == 1, 3.0, 1.0))
    found = fit("majority", TrainingData(data.classes, heavy, validation)).predict_proba(test.activations)
    np.testing.assert_allclose(found, np.tile([80 / 380, 300 / 380], (120, 1)), rtol=1e-12)


def test_mlp_keeps_the_epoch_of_lowest_validation_loss(two_classes: Data) -> None:
    data, _ = two_classes
    model = fit("mlp", data, hidden=8, epochs=40, patience=3, learning_rate=0.03, refit=False)
    losses = [row["validation_log_loss"] for row in model.history]
    assert [row["epoch"] for row in model.history] == list(range(1, len(losses) + 1))
    assert model.chosen["epoch"] == int(np.argmin(losses)) + 1
    assert len(losses) in (model.chosen["epoch"] + 3, 40)
    probabilities = model.predict_proba(data.validation.activations)
    own = probabilities[np.arange(60), data.validation.labels]
    assert -np.log(own).mean() == pytest.approx(min(losses), rel=1e-9)


def test_mlp_is_fitted_again_with_validation_up_to_the_chosen_epoch(two_classes: Data) -> None:
    """The refit is what it would be if the course had ended there, on both parts, with nothing to choose."""
    data, test = two_classes
    found = fit("mlp", data, epochs=6, patience=6)
    params = mlp.Params(kind="mlp", epochs=6)
    normalization, rows = prepare(params, [data.training, data.validation], data.classes)
    heads = [head for head, _ in mlp._epochs(params, rows, grid(params)[0], 6, seed=0)]
    expected = heads[found.chosen["epoch"] - 1]
    features = normalization(test.activations.mean(axis=1))
    np.testing.assert_allclose(found.predict_proba(test.activations), softmax(expected.logits(features)), atol=1e-5)


def test_mlp_predicts_what_torch_does(two_classes: Data) -> None:
    import torch

    data, test = two_classes
    model = fit("mlp", data, views="identity", epochs=2)
    head = model.head
    network = torch.nn.Sequential(torch.nn.Linear(24, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))
    weights = (head.weight_in.T, head.bias_in, head.weight_out.T, head.bias_out)
    for parameter, value in zip(network.parameters(), weights, strict=True):
        parameter.data = torch.tensor(value)
    features = torch.from_numpy(model.normalization(test.activations[:, 0]))
    expected = network(features).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(model.predict_proba(test.activations), expected, atol=1e-5)
    assert model.trained_parameters == sum(p.numel() for p in network.parameters())


def test_mlp_that_runs_away_names_the_epoch_and_the_learning_rate(two_classes: Data) -> None:
    with pytest.raises(UserError, match=r"no longer finite in epoch \d+: lower learning_rate 1e\+30"):
        fit("mlp", two_classes[0], learning_rate=1e30, epochs=3)


def test_mlp_leaves_torchs_own_random_numbers_alone(two_classes: Data) -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit("mlp", two_classes[0], epochs=1)
    assert torch.equal(torch.rand(3), expected)
