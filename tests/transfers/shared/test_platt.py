from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import _sigmoid_calibration

from stages.cli import UserError
from stages.transfers.shared.platt import deal, folds, platt
from stages.transfers.shared.shallow import Rows, opposite, softmax


def make_rows(labels: list[int], groups: list[int] | None = None, images: list[int] | None = None) -> Rows:
    count = len(labels)
    classes = [f"class {c}" for c in range(max(labels) + 1)]
    return Rows(
        features=np.zeros((count, 1), np.float32),
        labels=np.array(labels),
        weights=np.ones(count),
        images=np.arange(count) if images is None else np.array(images),
        groups=None if groups is None else np.array(groups),
        classes=classes,
    )


def test_two_classes_get_the_sigmoid_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = (random.random(300) < 0.2).astype(np.int64)
    score = 2.0 * labels + random.normal(size=300)
    slope, shift = platt(opposite(score[:, None]), labels, np.ones(300))
    a, b = _sigmoid_calibration(score, labels)  # P(y = 1) = 1 / (1 + exp(a score + b))
    assert slope == pytest.approx(-a, rel=1e-4)
    assert shift[1] - shift[0] == pytest.approx(-b, rel=1e-4)


def test_more_classes_get_back_the_softmax_that_drew_their_labels() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(60_000, 3))
    chances = softmax(1.7 * scores + np.array([0.0, 0.8, -1.1]))
    labels = (random.random((60_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    slope, shift = platt(scores, labels, np.ones(60_000))
    assert slope == pytest.approx(1.7, abs=0.04)
    assert shift == pytest.approx(np.array([0.0, 0.8, -1.1]), abs=0.05)


def test_scores_that_are_looked_at_some_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    labels, weights = np.arange(90) % 3, random.uniform(0.5, 2, 90)
    scores = random.normal(size=(90, 3)) + np.eye(3)[labels]
    slope, shift = platt(scores, labels, weights)
    monkeypatch.setattr("stages.transfers.shared.platt.NUMBERS_AT_ONCE", 21)
    some_slope, some_shift = platt(scores, labels, weights)
    assert some_slope == pytest.approx(slope, rel=1e-9)
    assert some_shift == pytest.approx(shift, rel=1e-9)


def test_a_sample_of_weight_two_counts_as_two() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    scores = random.normal(size=(90, 3)) + np.eye(3)[labels]
    rows = [*range(90), *np.flatnonzero(labels == 2)]
    slope, shift = platt(scores, labels, np.where(labels == 2, 2.0, 1.0))
    twice = platt(scores[rows], labels[rows], np.ones(len(rows)))
    assert slope == pytest.approx(twice[0], rel=1e-6)
    np.testing.assert_allclose(shift, twice[1], atol=1e-6)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_scores_that_separate_the_classes_give_neither_nought_nor_one(size: float) -> None:
    """Platt's targets are a little off 0 and 1: with 20 samples a class 21/22."""
    labels = np.repeat([0, 1], 20)
    score = np.where(labels == 1, size, -size)[:, None]
    slope, shift = platt(opposite(score), labels, np.ones(40))
    assert softmax(slope * opposite(score) + shift)[:, 1] == pytest.approx(np.where(labels == 1, 21 / 22, 1 / 22))


def test_scores_that_are_all_the_same_give_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    slope, shift = platt(np.zeros((100, 3)), labels, np.ones(100))
    assert softmax(slope * np.zeros((1, 3)) + shift)[0] == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_folds_keep_groups_whole_and_every_class_inside() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 15, 200)
    rows = make_rows(((groups % 3 + random.integers(0, 2, 200)) % 3).tolist(), groups.tolist())
    parts = folds(rows, seed=0)
    assert len(parts) == 5
    assert sorted(np.concatenate([outside for _, outside in parts])) == list(range(200))
    for inside, outside in parts:
        assert not set(groups[inside]) & set(groups[outside])
        assert set(rows.labels[inside]) == {0, 1, 2}


def test_folds_keep_the_views_of_an_image_together_where_there_are_no_groups() -> None:
    rows = make_rows([0, 0, 1, 1] * 10, images=np.repeat(np.arange(20), 2).tolist())
    for inside, outside in folds(rows, seed=0):
        assert not set(rows.images[inside]) & set(rows.images[outside])


def test_a_class_of_two_groups_gets_two_folds() -> None:
    groups = [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(folds(make_rows([1, 0, 1, 0, 0, 0, 0, 0], groups), seed=0)) == 2


def test_a_class_of_a_single_group_is_dealt_by_image() -> None:
    rows = make_rows([1, 1, 0, 0, 0, 0, 0, 0], groups=[0, 0, 1, 1, 2, 2, 3, 3])
    whole, parts = deal(rows, seed=0)
    assert whole == "image"
    assert all(set(rows.labels[inside]) == {0, 1} for inside, _ in parts)


def test_a_class_of_a_single_image_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match="the class class 1 has one image to train on"):
        folds(make_rows([1, 0, 0, 0, 0]), seed=0)
