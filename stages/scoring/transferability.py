"""Which features will serve a data set best, before anything is trained on them: scores beside what was measured.

    make rank DATASET=cells

LogME, H-score and N-LEEP of all extracted features, next to two rankers that anyone has without them: size
(multiply-adds of an image) and a linear probe in five folds. How well each orders the features is told by its rank
correlation with the best accuracy that a run on them has reached; a score that orders no better than both simple
rankers is said to be so.

Only training and validation samples of the first repeat are read, in the view identity; maps and tokens are averaged.
Where images have several labels, a score is the mean over the labels of what it says of each.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import UserError, guard, warn
from stages.files import FEATURES, REPORTS
from stages.params import Params, read_params

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.store.activations import FeatureStore

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

SCORES = ("LogME", "H-score", "N-LEEP")
SIMPLE = ("size", "probe")
ROWS_AT_ONCE = 256
COMPONENTS_PER_CLASS = 5
"""Of the mixture in N-LEEP, as in the paper."""
PROBE_COST = 0.01
"""C of the probe in five folds."""
ENERGY = 0.8
"""Share of the variance that the principal components in N-LEEP keep, as in the paper."""


def log_me(features: Floats, labels: Ints) -> float:
    """Return the mean over classes of the highest log evidence of a linear model, in nats per sample.

    y = F w + noise, w ~ N(0, 1/a), noise ~ N(0, 1/b); a and b are found by fixed-point iteration. features (n, D),
    labels (n,). You et al., ICML 2021, arXiv:2102.11005, algorithm 1.
    """
    count, width = features.shape
    # The singular values of F and its left vectors, by way of the smaller of F F^T and F^T F.
    if width <= count:
        squares, right = np.linalg.eigh(features.T @ features)
        squares = np.maximum(squares, squares[-1] * 1e-14)
        left = features @ right / np.sqrt(squares)
    else:
        squares, left = np.linalg.eigh(features @ features.T)
        squares = np.maximum(squares, squares[-1] * 1e-14)
    found = []
    for c in range(int(labels.max()) + 1):
        y = (labels == c).astype(np.float64)
        z = (left.T @ y) ** 2
        outside = max(float(y @ y - z.sum()), 0.0)  # what no direction of F reaches
        a = b = 1.0
        for _ in range(100):
            before = a / b
            effective = float((squares / (squares + before)).sum())
            length = float((squares * z / (squares + before) ** 2).sum())
            residual = float((z / (1 + squares / before) ** 2).sum()) + outside
            a, b = effective / max(length, 1e-12), (count - effective) / max(residual, 1e-12)
            if abs(a / b - before) <= 1e-6 * before:
                break
        evidence = width / 2 * math.log(a) + count / 2 * math.log(b) - count / 2 * math.log(2 * math.pi)
        evidence -= 0.5 * (np.log(a + b * squares).sum() + (width - len(squares)) * math.log(a))
        evidence -= 0.5 * (b * residual + a * length)
        found.append(evidence / count)
    return float(np.mean(found))


def h_score(features: Floats, labels: Ints) -> float:
    """Return how much of the features' variance lies between the classes: (1 - s) trace(cov(F)^-1 cov(E[F | y])).

    cov(F) is shrunk by Ledoit and Wolf's s, without which more features than samples would score highest whatever they
    are. Bao et al., ICIP 2019, equation 4; Ibrahim et al., arXiv:2110.06893, equation 8.
    """
    from sklearn.covariance import LedoitWolf

    shrunk = LedoitWolf().fit(features)
    centred = features - features.mean(axis=0)
    means = np.stack([centred[labels == c].mean(axis=0) for c in range(int(labels.max()) + 1)])
    between = means[labels]
    explained = np.linalg.solve(shrunk.covariance_, between.T @ between / len(labels))
    return float((1 - shrunk.shrinkage_) * np.trace(explained))


def n_leep(features: Floats, labels: Ints, seed: int = 0) -> float:
    """Return the mean log likelihood (nats) of the labels given what a Gaussian mixture says of the features.

    With z the component of a sample, p(y) = sum_z p(y | z) p(z | x), and p(y | z) the share of the class among what the
    component holds. Li et al., CVPR 2021, arXiv:2103.07639, section 3.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    classes = int(labels.max()) + 1
    reduced = PCA(ENERGY, svd_solver="covariance_eigh").fit_transform(features)
    components = min(COMPONENTS_PER_CLASS * classes, len(labels))
    mixture = GaussianMixture(components, covariance_type="diag", reg_covar=1e-4, random_state=seed)
    belongs = mixture.fit(reduced).predict_proba(reduced)  # (n, components)
    return leep(belongs, labels)


def leep(belongs: Floats, labels: Ints) -> float:
    """Return the mean log of sum_z p(y | z) p(z | x), for p(z | x) (n, components). Nguyen et al., ICML 2020."""
    joint = np.stack([belongs[labels == c].sum(axis=0) for c in range(int(labels.max()) + 1)]) / len(labels)
    given = joint / np.maximum(joint.sum(axis=0), 1e-12)
    return float(np.log(np.maximum((belongs @ given.T)[np.arange(len(labels)), labels], 1e-12)).mean())


def probe(features: Floats, labels: Ints, groups: Sequence[str] | None) -> float:
    """Return the accuracy of logistic regression on standardised features in five folds, groups kept whole.

    A class that is in no other fold is never predicted. Of fewer than five groups each is a fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    from stages.transfers import Part, TrainingData
    from stages.transfers.logistic import Params as Logistic
    from stages.transfers.logistic import fit

    x, settings = features.astype(np.float32)[:, np.newaxis], Logistic(kind="logistic", C=[PROBE_COST], refit=False)

    def predicted(train: Ints, test: Ints) -> Ints:
        present, own = np.unique(labels[train], return_inverse=True)
        if len(present) == 1:
            return np.full(len(test), present[0])
        part = Part(x[train], own.astype(np.int64), np.eye(len(present), dtype=np.float32)[own], None)
        model = fit(settings, TrainingData([str(c) for c in present], part, part), 0)
        return np.asarray(present[model.predict_proba(x[test]).argmax(axis=1)])

    units = labels if groups is None else np.unique(groups)
    count = min(5, len(units), int(np.bincount(labels).max()))
    if count < 2:
        raise UserError("all samples are of one group: there are no folds for a probe")
    make = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = make(count, shuffle=True, random_state=0).split(features, labels, groups)
    return sum(int((predicted(train, test) == labels[test]).sum()) for train, test in folds) / len(labels)


def vectors(store: FeatureStore, rows: Ints) -> Floats:
    """Return the identity view of some rows as vectors (n, D): maps (C, H, W) and tokens (N, D) are averaged."""
    from stages.transfers.shared.mixing import map_axes

    pieces = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        read = store.read(rows[start : start + ROWS_AT_ONCE], ["identity"])[:, 0].astype(np.float64)
        axes = map_axes(read.shape) or [1] * (read.ndim == 3)
        pieces.append(read.mean(axis=tuple(axes)) if axes else read)
    return np.concatenate(pieces)


def score_features(params: Params, dataset: str) -> dict[str, dict[str, float]]:
    """Return for each extracted features of a data set's images every score. Raises UserError for no data set."""
    from stages.samples.table import read_samples
    from stages.store.activations import read_features

    entry = params.entry("datasets", dataset)
    samples = read_samples(dataset)
    rows = np.sort(np.concatenate([samples.part(0, part) for part in ("train", "validation")]))
    hashes, labels = samples.image_hashes, samples.labels[rows]
    groups = None if samples.groups is None else [samples.groups[row] for row in rows]
    found: dict[str, dict[str, float]] = {}
    for name, features in params.features.items():
        if features.images != entry.images or features.cut == "image":
            continue  # of other images, or of no network
        if not (FEATURES / name / "features.json").is_file():
            warn(f"features {name} are not extracted yet: run `dvc repro`")
            continue
        store = read_features(name)
        at = store.rows([hashes[row] for row in rows])
        if (at < 0).any():
            warn(f"features {name} lack {(at < 0).sum()} of {len(at)} images of {dataset}: run `dvc repro`")
            continue
        x = vectors(store, at)
        x = x[:, x.std(axis=0) > 0]
        of_each = [_scores(x, own, groups) for own in (labels.T if samples.multi_label else [labels])]
        means = {score: float(np.mean([own[score] for own in of_each])) for score in of_each[0]}
        found[name] = {**means, "size": float(store.facts["operations"])}
    return found


def _scores(x: Floats, labels: Ints, groups: Sequence[str] | None) -> dict[str, float]:
    return {
        "LogME": log_me(x, labels),
        "H-score": h_score(x, labels),
        "N-LEEP": n_leep(x, labels),
        "probe": probe(x, labels, groups),
    }


def measured(rows: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float]:
    """Return the best figure of the runs on each features, of those with the most repeats."""
    from stages.scoring.leaderboard import headline

    best: dict[str, tuple[int, float]] = {}
    for row in rows:
        if row["dataset"] == dataset:
            key = int(row["repeats"]), float(row[headline(row)])
            best[row["features"]] = max(best.get(row["features"], (0, 0.0)), key)
    most = max((repeats for repeats, _ in best.values()), default=0)
    return {features: accuracy for features, (repeats, accuracy) in best.items() if repeats == most}


def correlations(scores: Mapping[str, Mapping[str, float]], reached: Mapping[str, float]) -> dict[str, float]:
    """Return Spearman's rank correlation of each score with what was reached, over the features that have both.

    It is NaN for a score that is the same for all.
    """
    from scipy.stats import spearmanr

    names = [name for name in scores if name in reached]
    if len(names) < 3:
        return {}
    accuracy = [reached[name] for name in names]
    columns = {score: [scores[name][score] for name in names] for score in (*SCORES, *SIMPLE)}
    return {
        score: float(spearmanr(values, accuracy).statistic) if len(set(values)) > 1 else math.nan
        for score, values in columns.items()
    }


def verdict(found: Mapping[str, float]) -> str:
    """Say which scores order the features better than both simple rankers, and which do not.

    A ranker that is the same for all features orders nothing: its correlation is NaN.
    """
    simple = max((found[name] for name in SIMPLE if not math.isnan(found[name])), default=-math.inf)
    better = [name for name in SCORES if found[name] > simple]
    worse = [name for name in SCORES if name not in better]
    parts = [f"{' and '.join(better)} order these features better than size and a probe do."] if better else []
    parts += [f"{' and '.join(worse)} order them no better than the simple rankers."] if worse else []
    return " ".join(parts)


def main() -> None:
    """Print the table, and how well each score orders the features."""
    from stages.scoring.leaderboard import read_leaderboard

    leaderboard = REPORTS / "leaderboard.csv"
    about = argparse.ArgumentParser("python -m stages.scoring.transferability", description="Rank features.")
    about.add_argument("dataset", help="a data set of params.yaml")
    dataset = about.parse_args().dataset
    scores = score_features(read_params(), dataset)
    if not scores:
        raise UserError(f"no features of the images of {dataset} are extracted: run `dvc repro`")
    reached = measured(read_leaderboard(leaderboard), dataset) if leaderboard.is_file() else {}
    print("| features | LogME | H-score | N-LEEP | multiply-adds | 5-fold probe | best run |")
    print("|---|---|---|---|---|---|---|")
    for name, own in sorted(scores.items(), key=lambda item: -reached.get(item[0], 0)):
        best = f"{reached[name]:.3f}" if name in reached else "–"
        shown = " | ".join(f"{own[score]:.3f}" for score in SCORES)
        print(f"| {name} | {shown} | {own['size']:,.0f} | {own['probe']:.3f} | {best} |")
    found = correlations(scores, reached)
    if not found:
        print("\nFewer than three features have a run on all repeats: no rank correlation can be told.")
        return
    shown = " | ".join(f"{found[score]:+.2f}" for score in (*SCORES, *SIMPLE))
    print(f"| rank correlation | {shown} | |\n\n{verdict(found)}")


if __name__ == "__main__":
    guard(main)
