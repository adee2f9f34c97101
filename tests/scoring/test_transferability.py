"""Scores of transferability against what they are defined as."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.mixture import GaussianMixture

from stages.cli import UserError, guard
from stages.params import read_params
from stages.scoring import transferability
from stages.scoring.leaderboard import csv_text
from stages.scoring.transferability import (
    correlations,
    h_score,
    leep,
    log_me,
    measured,
    n_leep,
    probe,
    score_features,
    vectors,
    verdict,
)
from stages.store.activations import FeatureStore, read_features, write_features
from tests.test_finetune import COUNT, HASHES, LABELS, make_activations, parts, write_dataset, write_store


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


@pytest.mark.parametrize("width", [5, 40])
def test_h_score_is_shrunk_by_what_ledoit_and_wolf_say(width: int) -> None:
    """Of 45 samples of unequal classes: the covariance is shrunk towards a ball, and the score by the same share."""
    random = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [25, 15, 5])
    features = random.standard_normal((45, width)) + np.eye(3, width)[labels] + 10.0
    share = float(ledoit_wolf_shrinkage(features))
    assert share > 0.1
    centred = features - features.mean(0)
    covariance = centred.T @ centred / 45
    shrunk = (1 - share) * covariance + share * np.trace(covariance) / width * np.eye(width)
    between = sum(
        n / 45 * np.outer(m, m)
        for n, m in ((25, centred[:25].mean(0)), (15, centred[25:40].mean(0)), (5, centred[40:].mean(0)))
    )
    expected = (1 - share) * np.trace(np.linalg.inv(shrunk) @ between)
    assert h_score(features, labels) == pytest.approx(expected, rel=1e-9)


def test_more_features_than_samples_do_not_score_high_whatever_they_are() -> None:
    """Unshrunk, noise of as many features as there are samples reaches the most there is: classes less one."""
    random = np.random.default_rng(0)
    noise, labels = random.standard_normal((40, 200)), np.arange(40) % 2
    told = noise + 1.0 * labels[:, None]
    assert h_score(noise, labels) < 0.2
    assert h_score(told, labels) > 3 * h_score(noise, labels)


def test_leep_is_the_likelihood_by_hand() -> None:
    belongs = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    labels = np.array([0, 0, 1, 1])
    # Component 0 holds 2 of class 0 and half of class 1: 0.8 and 0.2; component 1 holds class 1 alone.
    expected = np.mean(np.log([0.8, 0.8, 1.0, 0.5 * 0.2 + 0.5 * 1.0]))
    assert leep(belongs, labels) == pytest.approx(expected)


def test_n_leep_is_the_likelihood_by_hand_where_clusters_lie_apart() -> None:
    """Two classes have ten components: here ten clusters of ten samples, of which 0, 1, ... 9 are of class 1."""
    cluster = np.repeat(np.arange(10), 10)
    labels = (np.arange(100) % 10 < cluster).astype(int)
    features = (10 * cluster + 0.1 * np.random.default_rng(0).standard_normal(100))[:, None]
    shares = cluster / 10
    assert n_leep(features, labels) == pytest.approx(np.log(np.where(labels == 1, shares, 1 - shares)).mean())


def test_n_leep_takes_what_a_mixture_says_of_four_fifths_of_the_variance() -> None:
    features, labels = made_up(count=90, width=6, apart=2.0)
    features = features * [4.0, 3.0, 2.0, 1.0, 0.5, 0.1]
    centred = features - features.mean(0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    kept = int(np.argmax(np.cumsum(lengths**2) / (lengths**2).sum() > 0.8)) + 1
    assert 1 < kept < 6
    reduced = centred @ directions[:kept].T
    mixture = GaussianMixture(15, covariance_type="diag", reg_covar=1e-4, random_state=0).fit(reduced)
    held = mixture.predict_proba(reduced)
    shares = [[held[labels == c, z].sum() / held[:, z].sum() for z in range(15)] for c in range(3)]
    likelihoods = [sum(held[row, z] * shares[label][z] for z in range(15)) for row, label in enumerate(labels)]
    assert n_leep(features, labels) == pytest.approx(np.log(likelihoods).mean(), abs=1e-6)


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


# ---- make rank, on features and a data set that other stages' writers have written

PARAMS = """\
downloads:
  elpv: {source: elpv, path: requirements.lock}
  lite0: {source: weights, path: requirements.lock, network: tf_efficientnet_lite0, origin: package}
datasets:
  cells: {images: elpv, label: {column: probability, threshold: 0.5}}
features:
  lite0: {images: elpv, backbone: raw/lite0, image_size: 64, views: [identity, flip]}
  pixels: {images: elpv, backbone: raw/lite0, image_size: 64, cut: image}
runs: {}
compare: {references: {}}
"""
LEARNED = [i for i, part in enumerate(parts(0)) if part != "test"]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which prepare and extract have run."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    write_dataset()
    write_store()
    return tmp_path


def rank(monkeypatch: pytest.MonkeyPatch, dataset: str = "cells") -> int:
    """Call the program; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["rank", dataset])
    with pytest.raises(SystemExit) as end:
        guard(transferability.main)
    return int(str(end.value.code))


@pytest.mark.usefixtures("prepared")
def test_scores_are_of_training_and_validation_samples_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    labels, features = LABELS[LEARNED], make_activations()[LEARNED, 0].astype(np.float64)
    modules = [f"module {i // 5}" for i in LEARNED]
    found = score_features(read_params(), "cells")
    assert found.keys() == {"lite0"}  # pixels are of no network
    assert found["lite0"] == pytest.approx(
        {
            "LogME": log_me(features, labels),
            "H-score": h_score(features, labels),
            "N-LEEP": n_leep(features, labels),
            "probe": probe(features, labels, modules),
            "size": 7,
        }
    )
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("poison", [np.nan, 1e30])
def test_what_test_samples_and_other_views_hold_changes_no_score(
    poison: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score_features(read_params(), "cells")
    activations = make_activations()
    activations[:, 1] = poison
    activations[[i for i in range(COUNT) if i not in LEARNED]] = poison
    write_store(activations)
    seen: set[int] = set()
    read = FeatureStore.read

    def watched(store: FeatureStore, rows: np.ndarray, views: list[str] | None = None) -> np.ndarray:
        seen.update(np.asarray(rows).tolist())
        return read(store, rows, views)

    monkeypatch.setattr(FeatureStore, "read", watched)
    assert score_features(read_params(), "cells") == expected
    assert seen == {sorted(HASHES).index(HASHES[i]) for i in LEARNED}


@pytest.mark.usefixtures("prepared")
def test_labels_of_test_samples_change_no_score() -> None:
    expected = score_features(read_params(), "cells")
    labels = LABELS.copy()
    others = [i for i in range(COUNT) if i not in LEARNED]
    labels[others] = 1 - labels[others]
    write_dataset(labels=labels)
    assert score_features(read_params(), "cells") == expected
    labels[LEARNED] = np.random.default_rng(0).permutation(labels[LEARNED])
    write_dataset(labels=labels)
    assert score_features(read_params(), "cells")["lite0"]["LogME"] < expected["lite0"]["LogME"]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((6,), ()), ((6, 3, 3), (2, 3)), ((3, 3, 6), (1, 2)), ((9, 6), (1,))],
    ids=["vectors", "maps", "maps with their channels last", "tokens"],
)
def test_maps_and_tokens_are_averaged(shape: tuple[int, ...], axes: tuple[int, ...], tmp_path: Path) -> None:
    """More rows than are read at a time, in another order than they are stored."""
    images = [f"{i:064x}" for i in range(300)]
    stored = np.random.default_rng(0).standard_normal((300, 2, *shape)).astype(np.float32)
    (tmp_path / "weights.safetensors").touch()
    (tmp_path / "network.json").touch()
    facts = {"views": ["flip", "identity"], "shape": shape, "dtype": "float32"}
    write_features(tmp_path / "features", facts, images, {}, [stored], [], tmp_path)
    rows = np.random.default_rng(1).permutation(300)[:270]
    found = vectors(read_features(tmp_path / "features"), rows)
    expected = stored[rows, 1].astype(np.float64)
    np.testing.assert_allclose(found, expected.mean(axis=axes) if axes else expected, rtol=1e-12)


def test_the_table_has_features_and_what_runs_on_them_reached(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"  {name}: {{images: elpv, backbone: raw/lite0, image_size: 64}}\n" for name in ("few", "late")]
    Path("params.yaml").write_text(PARAMS.replace("runs:", f"{''.join(more)}runs:", 1))
    write_store(make_activations()[: COUNT - 5], HASHES[: COUNT - 5], name="few")
    row = {"run": "probe", "dataset": "cells", "features": "lite0", "repeats": 4, "accuracy": 0.875, "micro_f1": None}
    (prepared / "reports").mkdir()
    (prepared / "reports/leaderboard.csv").write_text(csv_text([row], list(row)))
    own = score_features(read_params(), "cells")["lite0"]
    capsys.readouterr()
    assert rank(monkeypatch) == 0
    out, err = capsys.readouterr()
    assert set(parts(0)[COUNT - 5 :]) == {"train"}
    assert err.splitlines() == [
        f"warning: features few lack 5 of {len(LEARNED)} images of cells: run `dvc repro`",
        "warning: features late are not extracted yet: run `dvc repro`",
    ]
    shown = (
        f"| lite0 | {own['LogME']:.3f} | {own['H-score']:.3f} | {own['N-LEEP']:.3f} | 7 | {own['probe']:.3f} | 0.875 |"
    )
    assert out.splitlines()[2] == shown
    assert "Fewer than three features have a run" in out


def test_features_are_scored_before_anything_is_trained_on_them(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (prepared / "reports").exists()
    assert rank(monkeypatch) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].startswith("| lite0 | ")
    assert out.splitlines()[2].endswith(" | – |")


def test_what_cannot_be_ranked_is_an_error_of_one_line(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rank(monkeypatch, "cels") == 2
    assert "did you mean cells" in capsys.readouterr().err
    (prepared / "data/features/lite0/features.json").unlink()
    assert rank(monkeypatch) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1] == "no features of the images of cells are extracted: run `dvc repro`"
    )
