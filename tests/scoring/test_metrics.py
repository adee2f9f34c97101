"""Figures against scikit-learn and against hand calculation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from stages.scoring import metrics
from stages.scoring.intervals import estimates
from stages.scoring.metrics import (
    FIGURES,
    LABEL_FIGURES,
    Floats,
    Integers,
    LabelScores,
    Outcomes,
    Scores,
    calibration_bin,
)


def whole(truth: Integers, probabilities: Floats) -> dict[str, Floats]:
    return {k: v[0] for k, v in Scores(truth, probabilities).figures(np.ones((1, len(truth)))).items()}


def made_up(images: int, classes: int, seed: int = 0, decimals: int = 2) -> tuple[Integers, Floats]:
    """Return truth and probabilities that know something of it; rounded, so that many scores are equal."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, images)
    scores = random.normal(size=(images, classes)) + 1.2 * np.eye(classes)[truth]
    powers = np.exp(scores)
    probabilities = np.round(powers / powers.sum(axis=1, keepdims=True), decimals) + 1e-3
    return truth, probabilities / probabilities.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("decimals", [2, 9])
@pytest.mark.parametrize("classes", [2, 4])
def test_figures_equal_those_of_scikit_learn(classes: int, decimals: int) -> None:
    truth, p = made_up(300, classes, decimals=decimals)
    found, predicted = whole(truth, p), p.argmax(axis=1)
    one_hot = np.eye(classes)[truth]
    expected = {
        "accuracy": reference.accuracy_score(truth, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, predicted),
        "f1": reference.f1_score(truth, predicted, average="macro"),
        "log_loss": reference.log_loss(truth, p),
        "auc": reference.roc_auc_score(truth, p[:, 1] if classes == 2 else p, multi_class="ovr"),
        "average_precision": reference.average_precision_score(
            truth if classes == 2 else one_hot, p[:, 1] if classes == 2 else p
        ),
    }
    for figure, value in expected.items():
        assert found[figure] == pytest.approx(value, abs=1e-12), figure


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_of_each_class_equal_those_of_scikit_learn(classes: int) -> None:
    truth, p = made_up(300, classes)
    found = whole(truth, p)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(truth, p.argmax(axis=1))
    np.testing.assert_allclose(found["class_precision"], precision)
    np.testing.assert_allclose(found["class_recall"], recall)
    np.testing.assert_allclose(found["class_f1"], f1)
    of_class = [reference.roc_auc_score(truth == c, p[:, c]) for c in range(classes)]
    np.testing.assert_allclose(found["class_auc"], of_class)


def test_calibration_error_by_hand() -> None:
    # Bins of 1/15: 0.6 and 0.62 lie in (8/15, 9/15] and (9/15, 10/15], 0.9 and 0.92 both in (13/15, 14/15].
    p = np.array([[0.4, 0.6], [0.38, 0.62], [0.1, 0.9], [0.08, 0.92]])
    truth = np.array([1, 0, 1, 0])
    by_bin = [abs(1 - 0.6), abs(0 - 0.62), 2 * abs(0.5 - 0.91)]
    assert whole(truth, p)["ece"] == pytest.approx(sum(by_bin) / 4)


def test_calibration_bins_hold_their_upper_edge() -> None:
    np.testing.assert_array_equal(calibration_bin(np.array([0.0, 0.01, 1 / 15, 0.07, 0.5, 1.0])), [0, 0, 0, 1, 7, 14])


def test_weights_count_as_repeated_images_do() -> None:
    truth, p = made_up(60, 3)
    times = np.random.default_rng(1).integers(0, 4, 60)
    weighted = Scores(truth, p).figures(times[None, :].astype(float))
    repeated = whole(np.repeat(truth, times), np.repeat(p, times, axis=0))
    for figure, values in weighted.items():
        np.testing.assert_allclose(values[0], repeated[figure], atol=1e-12, err_msg=figure)


def test_a_weight_of_a_group_counts_for_all_of_its_images() -> None:
    truth, p = made_up(60, 3)
    groups = np.random.default_rng(2).integers(0, 7, 60)
    weights = np.random.default_rng(3).integers(0, 3, (5, 7)).astype(float)
    of_groups = Scores(truth, p, groups).figures(weights)
    of_images = Scores(truth, p).figures(weights[:, groups])
    for figure, values in of_groups.items():
        np.testing.assert_allclose(values, of_images[figure], atol=1e-12, err_msg=figure)


def test_scores_of_different_models_are_not_ranked_against_each_other() -> None:
    # Each repeat ranks perfectly, on a scale of its own: ranked together they would give 0.75.
    score = np.array([0.1, 0.2, 0.7, 0.8])
    truth = np.array([0, 1, 0, 1])
    outcomes = Outcomes(
        ["a", "b"], list("wxyz"), np.array([0, 0, 1, 1]), None, truth, np.stack([1 - score, score], axis=1)
    )
    assert reference.roc_auc_score(truth, score) == 0.75
    assert estimates(outcomes)[0]["auc"].value == 1.0


def test_a_repeat_with_one_class_has_no_auc_and_does_not_count() -> None:
    score = np.array([0.1, 0.9, 0.8, 0.2, 0.6, 0.7])
    truth = np.array([0, 1, 0, 1, 1, 1])  # repeat 2 tests class b alone
    repeats = np.array([0, 0, 1, 1, 2, 2])
    outcomes = Outcomes(["a", "b"], list("uvwxyz"), repeats, None, truth, np.stack([1 - score, score], axis=1))
    figures, classes = estimates(outcomes)
    assert figures["auc"].value == 0.5  # the mean of 1 and 0
    assert figures["accuracy"].value == pytest.approx((1 + 0 + 1) / 3, abs=1e-6)
    assert classes["b"]["auc"].value == 0.5


def test_with_one_class_only_auc_is_undefined_and_the_rest_is_not() -> None:
    score = np.linspace(0.2, 0.9, 8)
    outcomes = Outcomes(
        ["a", "b"],
        list("abcdefgh"),
        np.zeros(8, dtype=int),
        None,
        np.ones(8, dtype=int),
        np.stack([1 - score, score], axis=1),
    )
    figures, classes = estimates(outcomes)
    assert (figures["auc"].value, figures["auc"].low, figures["auc"].high) == (None, None, None)
    assert figures["accuracy"].value == 0.5
    assert figures["average_precision"].value == 1.0
    assert classes["a"]["recall"].value is None


def test_constant_predictions_rank_like_chance_and_leave_a_precision_undefined() -> None:
    p = np.tile([0.7, 0.3], (40, 1))
    outcomes = Outcomes(
        ["a", "b"], [f"{i:02d}" for i in range(40)], np.zeros(40, dtype=int), None, np.arange(40) % 4 // 3, p
    )
    figures, classes = estimates(outcomes)
    assert figures["auc"].value == figures["balanced_accuracy"].value == 0.5
    assert figures["average_precision"].value == 0.25  # the share of the positive class
    assert classes["b"]["precision"].value is None
    assert classes["b"]["f1"].value == 0.0


def test_a_true_class_of_probability_zero_costs_much_but_not_everything() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert whole(np.array([1, 1]), p)["log_loss"] == pytest.approx(-np.log(np.finfo(np.float32).eps) / 2)


def test_no_figure_is_forgotten() -> None:
    truth, p = made_up(50, 3)
    assert set(FIGURES) <= set(whole(truth, p))


def several(images: int = 300, labels: int = 4, decimals: int = 2) -> tuple[Integers, Floats]:
    """Return truth (images, labels) and probabilities that know something of it; rounded, so that many are equal."""
    random = np.random.default_rng(1)
    truth = (random.random((images, labels)) < np.linspace(0.1, 0.6, labels)).astype(np.int64)
    logits = random.normal(size=truth.shape) + 2 * truth - 1
    return truth, np.round(1 / (1 + np.exp(-logits)), decimals) * 0.998 + 0.001


@pytest.mark.parametrize("decimals", [2, 9])
def test_figures_of_several_labels_equal_those_of_scikit_learn(decimals: int) -> None:
    truth, p = several(decimals=decimals)
    answers = (p >= 0.5).astype(np.int64)
    found = {k: v[0] for k, v in LabelScores(truth, p).figures(np.ones((1, len(truth)))).items()}
    columns = range(truth.shape[1])
    expected = {
        "accuracy": 1 - reference.hamming_loss(truth, answers),
        "balanced_accuracy": np.mean([reference.balanced_accuracy_score(truth[:, c], answers[:, c]) for c in columns]),
        "f1": reference.f1_score(truth, answers, average="macro"),
        "micro_f1": reference.f1_score(truth, answers, average="micro"),
        "auc": reference.roc_auc_score(truth, p, average="macro"),
        "average_precision": reference.average_precision_score(truth, p, average="macro"),
        "log_loss": np.mean([reference.log_loss(truth[:, c], p[:, c]) for c in columns]),
    }
    assert set(expected) | {"ece"} == set(LABEL_FIGURES)
    for figure, value in expected.items():
        assert found[figure] == pytest.approx(value, abs=1e-12), figure
    precision, recall, f1, _ = reference.precision_recall_fscore_support(truth, answers)
    np.testing.assert_allclose(found["class_precision"], precision)
    np.testing.assert_allclose(found["class_recall"], recall)
    np.testing.assert_allclose(found["class_f1"], f1)
    of_each = reference.average_precision_score(truth, p, average=None)
    np.testing.assert_allclose(found["class_average_precision"], of_each)


def test_calibration_error_of_several_labels_is_that_of_all_answers() -> None:
    truth, p = several(decimals=9)  # where none is exactly one half
    flat = np.stack([1 - p.ravel(), p.ravel()], axis=1)
    found = LabelScores(truth, p).figures(np.ones((1, len(truth))), ranks=False)["ece"][0]
    assert found == pytest.approx(whole(truth.ravel(), flat)["ece"], abs=1e-12)


def test_an_image_of_weight_two_counts_as_two_and_units_share_a_weight() -> None:
    truth, p = several(60)
    twice = np.concatenate([np.arange(60), np.arange(10)])
    weights = np.ones((1, 60))
    weights[0, :10] = 2
    expected = LabelScores(truth[twice], p[twice]).figures(np.ones((1, 70)))
    for found in (
        LabelScores(truth, p).figures(weights),
        LabelScores(truth, p, np.repeat(np.arange(6), 10)).figures(np.array([[2.0, 1, 1, 1, 1, 1]])),
    ):
        for figure, value in expected.items():
            np.testing.assert_allclose(found[figure], value, atol=1e-12, err_msg=figure)


@pytest.mark.parametrize("decimals", [1, 9])  # with many equal probabilities, and without
@pytest.mark.parametrize("kind", ["two classes", "five classes", "labels"])
def test_leaving_a_unit_out_is_giving_its_images_no_weight(
    kind: str, decimals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SCORES", 7)
    monkeypatch.setattr(metrics, "COLUMNS", 2)
    monkeypatch.setattr(metrics, "ROWS", 33)
    random = np.random.default_rng(3)
    if kind == "labels":
        truth, p = several(decimals=decimals)
    else:
        k = 2 if kind == "two classes" else 5
        truth = random.integers(0, k, 300)
        p = np.round(random.dirichlet(np.ones(k), 300) + 0.5 * np.eye(k)[truth], decimals)
    units = random.integers(0, 9, len(truth))
    units[truth == 1 if truth.ndim == 1 else truth[:, 0] == 1] = 4  # without it there is nothing to find
    scores = (LabelScores if kind == "labels" else Scores)(truth, p, units)
    found, expected = scores.left_out(12), scores.figures(np.concatenate([np.ones((1, 9)), 1 - np.eye(9)]))
    assert set(found) == set(expected)
    for figure, values in expected.items():
        np.testing.assert_allclose(found[figure][:10], values, atol=1e-12, err_msg=figure)
        np.testing.assert_allclose(found[figure][10:], values[[0, 0, 0]], atol=1e-12)  # units without images
    assert np.isnan(found["class_auc"][5]).any()
