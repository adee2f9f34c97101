from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from stages.transfers import Part, TrainingData
from stages.transfers.logistic import Params
from stages.transfers.shared.shallow import (
    Normalization,
    class_weights,
    coordinates,
    grid,
    inner_products,
    log_loss,
    prepare,
)
from tests.transfers.made_up import fit, take

Data = tuple[TrainingData, Part]


def test_standard_features_are_those_of_scikit_learn() -> None:
    features = np.random.default_rng(0).gamma(1.0, size=(3000, 7)).astype(np.float32) * 100
    found = Normalization.of("standard", features, np.ones(3000))(features)
    np.testing.assert_allclose(found, StandardScaler().fit_transform(features.astype(np.float64)), atol=1e-5)


def test_statistics_count_a_row_of_weight_two_twice() -> None:
    features = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    weights = np.where(np.arange(50) < 20, 2.0, 1.0)
    doubled = np.concatenate([features, features[:20]])
    found, expected = (Normalization.of("standard", f, w) for f, w in ((features, weights), (doubled, np.ones(70))))
    assert found.mean is not None
    assert found.factor is not None
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.factor, expected.factor, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_feature_that_never_varies_is_left_out_also_where_it_varies_later(value: float) -> None:
    features = np.full((500, 1), value, np.float32)
    normalize = Normalization.of("standard", features, np.ones(500))
    assert normalize(np.array([[value], [value + 7]], np.float32)).tolist() == [[0.0], [0.0]]


def test_l2_gives_every_image_a_vector_of_length_one() -> None:
    features = np.array([[3, 4], [0, 0]], np.float32)
    assert Normalization("l2")(features).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]


def test_fewer_coordinates_keep_all_inner_products() -> None:
    features = np.random.default_rng(0).normal(size=(40, 900)).astype(np.float32)
    features -= features.mean(axis=0)  # rows depend on each other, as centred ones do
    lower, back = coordinates(features)
    assert lower.shape == (40, 40)
    products = features.astype(np.float64) @ features.T.astype(np.float64)
    np.testing.assert_allclose(lower @ lower.T, products, atol=1e-6 * products.max())
    np.testing.assert_allclose(inner_products(features), products, atol=1e-9 * products.max())
    weight = np.random.default_rng(1).normal(size=(40, 2))
    np.testing.assert_allclose(features @ back(weight), lower @ weight, atol=1e-3)


def part_of(labels: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> Part:
    n = len(labels)
    return Part(np.zeros((n, 1, 2), np.float32), labels, np.eye(3, dtype=np.float32)[labels], None, weights)


def test_automatic_class_weights_are_scikit_learns_balanced_ones() -> None:
    labels, classes = np.repeat([0, 1, 2], [70, 25, 5]), ["a", "b", "c"]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    both = [part_of(labels[:60]), part_of(labels[60:])]
    np.testing.assert_allclose(class_weights("auto", both, classes), expected)
    assert class_weights({"c": 4.0}, both, classes).tolist() == [1, 1, 4]


def test_automatic_class_weights_take_a_sample_of_weight_two_as_two() -> None:
    labels = np.repeat([0, 1, 2], [70, 25, 5])
    doubled = np.concatenate([labels, labels[:20]])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=doubled)
    weighted = part_of(labels, np.where(np.arange(100) < 20, 2.0, 1.0))
    np.testing.assert_allclose(class_weights("auto", [weighted], ["a", "b", "c"]), expected)


def test_grid_holds_every_combination_in_the_order_of_params() -> None:
    params = Params(kind="logistic", C=[10.0, 0.1], class_weight={"sound": 2.0})
    assert grid(params) == [{"C": 10.0}, {"C": 0.1}]


def test_log_loss_of_an_impossible_answer_is_finite() -> None:
    assert log_loss(np.array([[1.0, 0.0]]), np.array([1]), np.ones(1)) == pytest.approx(708.4, abs=0.1)


def test_log_loss_is_the_weighted_mean_in_nats() -> None:
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5]])
    found = log_loss(probabilities, np.array([1, 0]), np.array([1.0, 3.0]))
    assert found == pytest.approx((np.log(4 / 3) + 3 * np.log(2)) / 4)


def test_mean_of_views_is_the_mean_of_their_features(two_classes: Data) -> None:
    data, test = two_classes

    def averaged(part: Part) -> Part:
        return Part(part.activations.mean(axis=1, keepdims=True), part.labels, part.targets, part.groups)

    expected = fit("logistic", TrainingData(data.classes, averaged(data.training), averaged(data.validation)))
    found = fit("logistic", data, views="mean").predict_proba(test.activations)
    assert np.array_equal(found, expected.predict_proba(averaged(test).activations))


def test_all_views_are_trained_on_and_their_predictions_averaged(two_classes: Data) -> None:
    data, test = two_classes
    model = fit("logistic", data, views="all", C=0.1)
    views = [model.predict_proba(test.activations[:, i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(model.predict_proba(test.activations), np.mean(views, axis=0), rtol=1e-12)


def test_all_views_of_a_sample_count_as_one_sample(two_classes: Data) -> None:
    """Twice the same view is that view once, C and all."""
    data, test = two_classes

    def once(part: Part) -> Part:
        return take(part, range(len(part.labels)), slice(0, 1))

    def twice(part: Part) -> Part:
        return Part(np.repeat(part.activations[:, :1], 2, axis=1), part.labels, part.targets, part.groups)

    one, two = (TrainingData(data.classes, f(data.training), f(data.validation)) for f in (once, twice))
    expected = fit("logistic", one, views="all", C=0.1).predict_proba(once(test).activations)
    found = fit("logistic", two, views="all", C=0.1).predict_proba(twice(test).activations)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_rows_of_one_sample_and_of_one_group_are_numbered_alike(two_classes: Data) -> None:
    data, _ = two_classes
    _, rows = prepare(Params(kind="logistic", views="all"), [data.training, data.validation], data.classes)
    assert rows.features.shape == (360, 64)
    assert rows.images.tolist() == np.repeat(np.arange(180), 2).tolist()
    assert rows.groups is not None
    names = np.repeat([*(data.training.groups or []), *(data.validation.groups or [])], 2)
    for group in np.unique(rows.groups):
        assert len(set(names[rows.groups == group])) == 1
    assert len(np.unique(rows.groups)) == len(set(names))
    np.testing.assert_allclose(rows.weights, 0.5)
