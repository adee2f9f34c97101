"""Scores of transferability against what they are defined as."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from stages.cli import UserError
from stages.scoring.transferability import correlations, h_score, leep, log_me, measured, n_leep, probe, verdict


def made_up(count: int = 60, width: int = 5, apart: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return random.standard_normal((count, width)) + apart * np.eye(3, width)[labels], labels


@pytest.mark.parametrize("width", [5, 80])
def test_log_me_is_the_highest_evidence_of_a_linear_model(width: int) -> None:
    features, labels = made_up(width=width)
    best = []
    for c in range(3):
        y = (labels == c).astype(float)

        def evidence(logs: np.ndarray, y: np.ndarray = y) -> float:
            cov = np.eye(len(y)) * np.exp(-logs[1]) + features @ features.T * np.exp(-logs[0])
            return -float(multivariate_normal(np.zeros(len(y)), cov).logpdf(y))

        found = min(
            (minimize(evidence, start, method="Nelder-Mead") for start in ([0, 0], [4, 2])), key=lambda r: r.fun
        )
        best.append(-found.fun / len(y))
    assert log_me(features, labels) == pytest.approx(np.mean(best), abs=1e-4)


def test_h_score_is_the_share_between_classes_where_there_are_many_samples() -> None:
    """One feature: the variance of the class means over the whole variance, which is the correlation ratio."""
    random = np.random.default_rng(0)
    labels = np.arange(30_000) % 2
    features = (labels * 2.0 + random.standard_normal(30_000))[:, None]
    assert h_score(features, labels) == pytest.approx(1 / (1 + 1), abs=0.01)


def test_leep_is_the_likelihood_by_hand() -> None:
    belongs = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    labels = np.array([0, 0, 1, 1])
    # Component 0 holds 2 of class 0 and half of class 1: 0.8 and 0.2; component 1 holds class 1 alone.
    expected = np.mean(np.log([0.8, 0.8, 1.0, 0.5 * 0.2 + 0.5 * 1.0]))
    assert leep(belongs, labels) == pytest.approx(expected)


@pytest.mark.parametrize("score", [log_me, h_score, n_leep])
def test_classes_further_apart_score_higher(score: object) -> None:
    scales = np.arange(1, 6)  # alike in all directions, features would be shrunk away in the H-score
    data = [made_up(count=300, apart=apart) for apart in (0.0, 1.0, 3.0)]
    found = [score(features * scales, labels) for features, labels in data]  # type: ignore[operator]
    assert found == sorted(found)
    assert found[2] > found[0]


def test_a_probe_in_folds_keeps_groups_whole() -> None:
    """Features that only tell groups apart predict nothing of other groups."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    labels = np.repeat(random.permutation(40) % 2, 10)
    features = np.eye(40)[groups] * 5 + 0.1 * random.standard_normal((400, 40))
    assert probe(features, labels, None) > 0.95
    assert probe(features, labels, [str(g) for g in groups]) < 0.7


def test_a_probe_counts_a_class_that_only_one_group_has_as_wrong() -> None:
    """Two of three classes lie apart; the third is of one group, which is never both learned and asked for."""
    labels = np.repeat([0, 1, 0, 1, 0, 1, 2], 10)
    groups = [str(g) for g in np.repeat(np.arange(7), 10)]
    features = 5 * np.eye(3)[labels] + 0.1 * np.random.default_rng(0).standard_normal((70, 3))
    assert probe(features, labels, groups) == pytest.approx(6 / 7)
    assert probe(features[:20], labels[:20], groups[:20]) == 0  # of two groups each is a class
    with pytest.raises(UserError, match="all samples are of one group"):
        probe(features[:20], labels[:20], ["a"] * 20)


def test_few_samples_of_many_classes_have_a_score() -> None:
    features, labels = np.random.default_rng(0).standard_normal((60, 8)), np.arange(60) % 20
    assert np.isfinite(n_leep(features, labels))


def test_what_was_reached_is_the_best_run_on_all_repeats() -> None:
    rows = [
        {"dataset": "cells", "features": "a", "repeats": "4", "accuracy": "0.8"},
        {"dataset": "cells", "features": "a", "repeats": "4", "accuracy": "0.9"},
        {"dataset": "cells", "features": "b", "repeats": "1", "accuracy": "0.99"},
        {"dataset": "other", "features": "a", "repeats": "4", "accuracy": "1.0"},
    ]
    assert measured(rows, "cells") == {"a": 0.9}


def test_a_score_that_orders_no_better_than_the_simple_rankers_is_said_to_be_so() -> None:
    names = {
        "LogME": [1, 2, 3, 4],
        "H-score": [4, 3, 2, 1],
        "N-LEEP": [1, 2, 4, 3],
        "size": [1, 3, 2, 4],
        "probe": [2, 1, 4, 3],
    }
    scores = {f: {name: float(values[i]) for name, values in names.items()} for i, f in enumerate("abcd")}
    found = correlations(scores, {"a": 0.6, "b": 0.7, "c": 0.8, "d": 0.9})
    assert found == pytest.approx({"LogME": 1.0, "H-score": -1.0, "N-LEEP": 0.8, "size": 0.8, "probe": 0.6})
    assert verdict(found) == (
        "LogME order these features better than size and a probe do. "
        "H-score and N-LEEP order them no better than the simple rankers."
    )
    assert correlations(scores, {"a": 0.6, "b": 0.7}) == {}
    same_size = {f: {**own, "size": 1.0} for f, own in scores.items()}  # one network, with other weights
    found = correlations(same_size, {"a": 0.6, "b": 0.7, "c": 0.8, "d": 0.9})
    assert verdict(found).startswith("LogME and N-LEEP order these features better than size and a probe do.")
